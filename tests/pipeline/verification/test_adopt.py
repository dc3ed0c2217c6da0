"""Adopting tars that webdataset's writer or Python's tarfile wrote; they are read back through DALI."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset
from helpers.folders import draw_image, encoded, is_root, place, tree
from PIL import Image

from pipeline import Dataset, EvalView, Loader, LocalExecutor, TrainView
from pipeline.dataset.manifest import ADOPTED, read_manifest
from pipeline.errors import RunError, UsageError
from pipeline.verification.adopt import adopt


class Here:
    """An executor that runs tasks in this process, without starting interpreters."""

    reports_progress = True

    def run(self, work, items, on_progress=None):
        for number, item in enumerate(items, start=1):
            yield work(item)
            if on_progress:
                on_progress(number)


def by_webdataset(path, rows):
    """Write a tar with webdataset's writer: PAX headers, members in the order of their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for key, fields in rows:
            writer.write({"__key__": key, **fields})
    return path


def by_tarfile(path, members, **options):
    """Write (name, bytes) members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def jpeg(seed, height=48, width=48):
    return encoded(draw_image(seed, height, width), quality=90)


def rows(count, classes, shape=lambda k: (48, 48), first=0):
    return [
        (f"pic{k:04d}", {"jpg": jpeg(k, *shape(k)), "cls": k % classes}) for k in range(first, first + count)
    ]


def labels_through_dali(root, split, crop=32):
    """Return key → label as the loader yields it."""
    found = {}
    with Loader(Dataset.open(root), split, EvalView("center", crop), 5, keys=True) as loader:
        for batch in loader:
            found.update(zip(batch.keys, batch.labels.tolist(), strict=True))
    return found


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)


def report(root):
    return list(csv.DictReader((root / "report.csv").read_text().splitlines()))


def test_squares_of_webdatasets_own_writer_are_trained_on_in_place(tmp_path):
    train, val = rows(30, 12), rows(13, 12, first=100)
    by_webdataset(tmp_path / "d" / "set-train-0000.tar", train[:17])
    by_webdataset(tmp_path / "d" / "set-train-0001.tar", train[17:])
    by_webdataset(tmp_path / "d" / "set-val-0000.tar", val)
    before = tree(tmp_path / "d")
    calls = []
    manifest = adopt(tmp_path / "d", executor=LocalExecutor(2), progress=lambda *done: calls.append(done))
    assert calls[-1] == (43, 43)
    assert {name: sha for name, sha in tree(tmp_path / "d").items() if name in before} == before
    assert set(tree(tmp_path / "d")) - set(before) == {
        *(name.replace(".tar", ".idx") for name in before),
        "manifest.json",
        "mean_image.npy",
        "report.csv",
    }
    assert manifest == read_manifest(tmp_path / "d")
    assert (manifest.image.size, manifest.image.mode, manifest.image.quality) == (48, "square", None)
    assert (manifest.source.layout, manifest.adopted, manifest.label_width) == (ADOPTED, True, 2)
    shards = [(s.name, s.samples, s.sha256) for s in manifest.splits["train"]]
    assert shards == [
        (name, count, before[name])
        for name, count in (("set-train-0000.tar", 17), ("set-train-0001.tar", 13))
    ]
    assert labels_through_dali(tmp_path / "d", "val") == {key: int(f["cls"]) for key, f in val}
    with Loader(Dataset.open(tmp_path / "d"), "train", TrainView(48), 10, keys=True) as loader:
        stored = dict(train)
        seen = [(k, x, y) for b in loader for k, x, y in zip(b.keys, b.images, b.labels, strict=True)]
    assert len({key for key, _, _ in seen}) == 30
    for key, image, label in seen:
        assert label == stored[key]["cls"]
        got, expected = image.permute(1, 2, 0).numpy(), decoded(stored[key]["jpg"])
        assert np.array_equal(got, expected) or np.array_equal(got, expected[:, ::-1])


def test_statistics_and_mean_image_are_numpys(tmp_path):
    train = rows(9, 3)
    by_webdataset(tmp_path / "train.tar", train)
    found = adopt(tmp_path, executor=Here()).statistics
    images = [decoded(fields["jpg"]) for _, fields in train]
    flat = np.concatenate(images).reshape(-1, 3)
    assert (found.measured_on, found.pixels) == ("decoded", 9 * 48 * 48)
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(flat.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(Dataset.open(tmp_path).mean_image(), np.mean(images, axis=0), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [
        (lambda k: (40, 40), "square", 40),
        (lambda k: (40, 50 + k) if k % 2 else (50 + k, 40), "aspect", 40),
        (lambda k: (40, 40) if k != 11 else (40, 41), "aspect", 40),  # the last one is not square
        (lambda k: (40, 40) if k != 11 else (39, 40), "original", 36),
        (lambda k: (30 + 3 * k, 80 - k), "original", 36),
    ],
)
def test_the_mode_is_what_fits_all_images(tmp_path, shape, mode, size):
    samples = rows(12, 3, shape)
    by_webdataset(tmp_path / "train-a.tar", samples[:6])
    by_webdataset(tmp_path / "train-b.tar", samples[6:])
    manifest = adopt(tmp_path, size=36, executor=Here())
    assert (manifest.image.mode, manifest.image.size) == (mode, size)
    assert (tmp_path / "mean_image.npy").is_file() == (mode == "square")
    assert labels_through_dali(tmp_path, "train") == {key: int(f["cls"]) for key, f in samples}
    if mode == "original":
        with pytest.raises(UsageError, match="hold images of different shapes, so it has no mean image"):
            Dataset.open(tmp_path).mean_image()
        sides = [(max(shape(k)), min(shape(k))) for k in range(12)]
        assert manifest.statistics.pixels == sum(size * round(long * size / short) for long, short in sides)


WRITERS = {
    "cls": lambda label: ("cls", str(label).encode()),
    "a line": lambda label: ("cls", f"{label}\n".encode()),
    "padded": lambda label: ("cls", f"{label:09d}".encode()),
    "spaces": lambda label: ("cls", f"  {label} \0\0".encode()),
    "json": lambda label: ("json", json.dumps({"label": label}).encode()),
    "compact": lambda label: ("json", json.dumps({"label": label, "b": 1}, separators=(",", ":")).encode()),
    "pretty": lambda label: ("json", json.dumps({"a": [1, 2], "label": label}, indent=2).encode()),
    "text": lambda label: ("json", json.dumps({"label": str(label), "z": "9"}).encode()),
    "far in": lambda label: ("json", json.dumps({"caption": "x" * (505 + label), "label": label}).encode()),
    "img2dataset": lambda label: (
        "json",
        json.dumps({"url": "http://a/1", "key": "01", "status": "success", "class": label}).encode(),
    ),
    "decoys": lambda label: (
        "json",
        json.dumps(
            {"meta": {"label": 7}, "caption": '"label": 3', "label": label, "class": 5, "x": {"label": 1}}
        ).encode(),
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_labels_are_read_where_they_stand(tmp_path, kind):
    members = []
    for k in range(24):
        suffix, data = WRITERS[kind](k % 12)
        members += [(f"pic{k}.JPEG", jpeg(k)), (f"pic{k}.{suffix}", data)]
    by_tarfile(tmp_path / "train.tar", members)
    manifest = adopt(tmp_path, executor=Here())
    assert len(manifest.classes) == 12
    assert labels_through_dali(tmp_path, "train") == {f"pic{k}": k % 12 for k in range(24)}


def test_many_classes_have_labels_of_many_widths(tmp_path):
    order = np.random.default_rng(0).permutation(1101)
    data = jpeg(0, 16, 16)
    by_tarfile(
        tmp_path / "train.tar",
        [m for k in order for m in ((f"k{k}.jpg", data), (f"k{k}.cls", b"%d" % k))],
        format=tarfile.GNU_FORMAT,
    )
    assert adopt(tmp_path, executor=Here()).label_width == 4
    assert labels_through_dali(tmp_path, "train", 16) == {f"k{k}": k for k in range(1101)}


def test_keys_with_dots_folders_and_long_names(tmp_path):
    names = [f"dir.x/{'very' * 30}.{k}.photo" for k in range(6)] + ["ünï cödé 1", "ünï cödé 2"]
    members = []
    for k, name in enumerate(names):
        members += [(f"{name}.jpg", jpeg(k)), (f"{name}.cls", b"%d" % (k % 2))]
    by_tarfile(tmp_path / "train.tar", members, format=tarfile.PAX_FORMAT)
    adopt(tmp_path, executor=Here())
    found = labels_through_dali(tmp_path, "train")
    assert len(found) == 8
    assert sorted(found.values()) == [0] * 4 + [1] * 4
    lines = (tmp_path / "train.idx").read_text().splitlines()
    assert all(len(line.split()) == 8 for line in lines[1:])


def test_the_numbers_in_the_tars_are_the_labels_whatever_the_names_say(tmp_path):
    wnids = ["n00000003", "n00000001", "n00000002"]  # classes of the labels 0, 1 and 2
    samples = [(f"{wnids[k % 3]}_{k}", {"jpg": jpeg(k), "cls": k % 3}) for k in range(9)]
    by_webdataset(tmp_path / "train.tar", samples)
    manifest = adopt(tmp_path, executor=Here())
    assert [info.id for info in manifest.classes] == wnids
    assert labels_through_dali(tmp_path, "train") == {key: int(f["cls"]) for key, f in samples}


def damaged(data):
    return data[: len(data) // 2]


def gif():
    return encoded(draw_image(9), "GIF")


def junk():
    """Return a JPEG with stray bytes between its header's segments, which DALI cannot read."""
    data = jpeg(8)
    return data[:20] + b"stray" + data[20:]


def test_images_that_cannot_be_loaded_are_left_out_of_the_index_and_reported(tmp_path):
    samples = rows(40, 4)
    samples[3][1]["jpg"] = damaged(samples[3][1]["jpg"])
    samples[11][1]["jpg"] = gif()
    samples[20][1]["jpg"] = junk()
    samples[21][1]["jpg"] = encoded(draw_image(21), "PNG")
    samples[22][1]["jpg"] = encoded(Image.fromarray(draw_image(22)).convert("CMYK"), quality=95)
    by_webdataset(tmp_path / "train.tar", samples)
    manifest = adopt(tmp_path, executor=Here(), max_bad=0.1)
    assert manifest.samples("train") == 37
    found = report(tmp_path)
    assert [(row["path"], row["action"]) for row in found] == [
        (f"train.tar/pic{k:04d}.jpg", "skipped") for k in (3, 11, 20)
    ]
    assert "GIF" in found[1]["reason"]
    bad = {f"pic{k:04d}" for k in (3, 11, 20)}
    assert labels_through_dali(tmp_path, "train") == {
        key: int(f["cls"]) for key, f in samples if key not in bad
    }


def test_too_many_bad_images_fail_and_leave_no_manifest(tmp_path):
    samples = rows(40, 4)
    samples[3][1]["jpg"] = damaged(samples[3][1]["jpg"])
    by_webdataset(tmp_path / "train.tar", samples)
    with pytest.raises(RunError, match=r"1 of 40 images .*train\.tar/pic0003\.jpg.*--max-bad"):
        adopt(tmp_path, executor=Here())
    assert len(report(tmp_path)) == 1
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "train.idx").exists()
    assert adopt(tmp_path, executor=Here(), max_bad=0.05).samples("train") == 39


def test_a_class_that_lost_its_images_fails(tmp_path):
    samples = rows(40, 20)
    for k in (7, 27):
        samples[k][1]["jpg"] = b"\xff\xd8 no image"
    by_webdataset(tmp_path / "train.tar", samples)
    with pytest.raises(RunError, match="no decodable training images are left for 07"):
        adopt(tmp_path, executor=Here(), max_bad=0.5)


def test_a_tar_with_nothing_left_is_no_shard(tmp_path):
    by_webdataset(tmp_path / "train-0.tar", rows(20, 4))
    by_webdataset(tmp_path / "train-1.tar", [("bad", {"jpg": b"\xff\xd8", "cls": 0})])
    manifest = adopt(tmp_path, executor=Here(), max_bad=0.2)
    assert [shard.name for shard in manifest.splits["train"]] == ["train-0.tar"]
    assert not (tmp_path / "train-1.idx").exists()
    assert len(labels_through_dali(tmp_path, "train")) == 20


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], r"train\.tar: .*\.cls has no integer as its label .*--layout webdataset"),
        ([1, 2], r"labels go up to 2, but no image has 0; .*--layout webdataset"),
        ([0, 1, 4], r"labels go up to 4, but no image has 2 or 1 others"),
    ],
)
def test_labels_that_cannot_be_read_in_place_are_one_line(tmp_path, labels, message):
    by_webdataset(
        tmp_path / "train.tar",
        [(f"k{n}", {"jpg": jpeg(n), "cls": str(labels[n % len(labels)])}) for n in range(6)],
    )
    with pytest.raises(UsageError, match=message) as caught:
        adopt(tmp_path, executor=Here())
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tar"]


def test_a_compressed_tar_is_one_line(tmp_path):
    by_webdataset(tmp_path / "train.tar.gz", rows(6, 2))
    with pytest.raises(UsageError, match=r"train\.tar\.gz: a compressed tar .* decompress it"):
        adopt(tmp_path, executor=Here())


def test_a_truncated_tar_is_one_line(tmp_path):
    path = by_webdataset(tmp_path / "train.tar", rows(6, 2))
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(UsageError, match=r"train\.tar: (truncated|damaged) at offset [0-9,]+"):
        adopt(tmp_path, executor=Here())


@pytest.mark.parametrize(
    ("name", "message"), [("manifest.json", "is a dataset already"), (".work/x", "unfinished")]
)
def test_a_dataset_of_ours_is_refused(tmp_path, name, message):
    by_webdataset(tmp_path / "train.tar", rows(6, 2))
    place(tmp_path / name, b"{}")
    with pytest.raises(UsageError, match=message):
        adopt(tmp_path, executor=Here())


def test_no_folder_no_tars_and_a_bucket(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        adopt(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no images found"):
        adopt(tmp_path)
    with pytest.raises(UsageError, match="copy them here first"):
        adopt("s3://bucket/set")


@pytest.mark.skipif(is_root(), reason="root may write anywhere")
def test_an_unwritable_folder_is_one_line(tmp_path):
    by_webdataset(tmp_path / "sub" / "train.tar", rows(6, 2))
    (tmp_path / "sub").chmod(0o555)
    with pytest.raises(UsageError, match="sub cannot be written; make a folder of links"):
        adopt(tmp_path, executor=Here())


def test_a_place_that_cannot_be_written_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    by_webdataset(tmp_path / "sub" / "train.tar", rows(6, 2))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("sub"))
    with pytest.raises(UsageError, match="sub cannot be written; make a folder of links"):
        adopt(tmp_path, executor=Here())


def test_a_folder_of_links_will_do(tmp_path):
    samples = rows(6, 2)
    target = by_webdataset(tmp_path / "real" / "train.tar", samples)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train.tar").symlink_to(target)
    adopt(tmp_path / "links", executor=Here())
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["train.tar"]
    assert labels_through_dali(tmp_path / "links", "train") == {key: int(f["cls"]) for key, f in samples}
