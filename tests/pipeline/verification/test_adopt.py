"""Adopting tars that webdataset's writer or Python's tarfile wrote; the loader reads them back."""

import csv
import json
import os
import tarfile

import numpy as np
import pytest
from helpers.codec_files import pillow
from helpers.folders import draw_image, encoded, place, refused, tree
from helpers.hub_files import write_tar
from helpers.imagenet_files import tar_bytes
from helpers.inline import INLINE
from PIL import Image

from pipeline import Dataset, EvalView, Loader, LocalExecutor, TrainView
from pipeline.dataset.manifest import ADOPTED, read_manifest
from pipeline.errors import RunError, UsageError
from pipeline.verification.adopt import adopt


def by_webdataset(path, rows):
    """Write a tar with webdataset's writer: PAX headers, members in the order of their names."""
    return write_tar(path, [{"__key__": key, **fields} for key, fields in rows])


def jpeg(seed, height=48, width=48):
    return encoded(draw_image(seed, height, width), quality=90)


def rows(count, classes, shape=lambda k: (48, 48), first=0):
    return [
        (f"pic{k:04d}", {"jpg": jpeg(k, *shape(k)), "cls": k % classes}) for k in range(first, first + count)
    ]


def labels_through_loader(root, split, crop=32):
    """Return key → label as the loader yields it; the other ways to the samples must agree."""
    found, data = {}, Dataset.open(root)
    with Loader(data, split, EvalView("center", crop), 32) as loader:
        for batch in loader:
            found.update(zip(batch.keys, batch.labels.tolist(), strict=True))
    decoded = list(data.samples(split))
    assert {one.key: one.label for one in decoded} == found
    stream = list(data.webdataset(split))
    for (image, label), one in zip(stream, decoded, strict=True):
        assert (label, image.tobytes()) == (one.label, one.image.tobytes())
    return found


def labels_of(rows):
    return {key: fields["cls"] for key, fields in rows}


def test_squares_of_webdatasets_own_writer_are_trained_on_in_place(tmp_path):
    train, val = rows(30, 12), rows(13, 12, first=100)
    by_webdataset(tmp_path / "d" / "set-train-0000.tar", train[:17])
    by_webdataset(tmp_path / "d" / "set-train-0001.tar", train[17:])
    by_webdataset(tmp_path / "d" / "set-val-0000.tar", val)
    before = tree(tmp_path / "d")
    calls = []
    manifest = adopt(tmp_path / "d", executor=INLINE, on_progress=lambda *done: calls.append(done))
    assert calls[-1] == (43, 43)
    assert {name: sha for name, sha in tree(tmp_path / "d").items() if name in before} == before
    indexes = {name.replace(".tar", ".idx") for name in before}
    assert set(tree(tmp_path / "d")) - set(before) - indexes == {
        "manifest.json",
        "mean_image.npy",
        "report.csv",
    }
    assert manifest == read_manifest(tmp_path / "d")
    assert (manifest.image.size, manifest.image.mode, manifest.image.quality) == (48, "square", None)
    assert (manifest.source.layout, manifest.adopted, manifest.label_width) == (ADOPTED, True, 2)
    assert {shard.name: shard.sha256 for shard in manifest.shards} == before
    assert [shard.samples for shard in manifest.shards] == [17, 13, 13]
    assert labels_through_loader(tmp_path / "d", "val") == labels_of(val)
    with Loader(Dataset.open(tmp_path / "d"), "train", TrainView(48), 10) as loader:
        stored = dict(train)
        seen = [(k, x, y) for b in loader for k, x, y in zip(b.keys, b.images, b.labels, strict=True)]
    assert len({key for key, _, _ in seen}) == 30
    for key, image, label in seen:
        assert label == stored[key]["cls"]
        got, expected = image.permute(1, 2, 0).numpy(), pillow(stored[key]["jpg"])
        assert np.array_equal(got, expected) or np.array_equal(got, expected[:, ::-1])


def test_statistics_and_mean_image_are_numpys(tmp_path):
    train = rows(9, 3)
    by_webdataset(tmp_path / "train.tar", train)
    found = adopt(tmp_path, executor=INLINE).statistics
    images = [pillow(fields["jpg"]).astype(float) for _, fields in train]
    flat = np.concatenate(images).reshape(-1, 3)
    assert (found.measured_on, found.pixels) == ("decoded", 9 * 48 * 48)
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(flat.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(Dataset.open(tmp_path).mean_image(), np.mean(images, axis=0), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "mode", "size", "executor"),
    [
        (lambda k: (40, 50 + k) if k % 2 else (50 + k, 40), "aspect", 40, INLINE),
        (lambda k: (40, 40) if k != 11 else (40, 41), "aspect", 40, LocalExecutor()),  # all but the last
        (lambda k: (30 + 3 * k, 80 - k), "original", 36, INLINE),
    ],
)
def test_the_mode_is_what_fits_all_images(tmp_path, shape, mode, size, executor):
    samples = rows(12, 3, shape)
    by_webdataset(tmp_path / "train-a.tar", samples[:6])
    by_webdataset(tmp_path / "train-b.tar", samples[6:])
    manifest = adopt(tmp_path, size=36, executor=executor)
    assert (manifest.image.mode, manifest.image.size) == (mode, size)
    assert (tmp_path / "mean_image.npy").is_file() == (mode == "square")
    assert labels_through_loader(tmp_path, "train") == labels_of(samples)
    if mode == "original":
        with pytest.raises(UsageError, match="hold images of different shapes, so it has no mean image"):
            Dataset.open(tmp_path).mean_image()
        sides = [(max(shape(k)), min(shape(k))) for k in range(12)]
        assert manifest.statistics.pixels == sum(size * round(long * size / short) for long, short in sides)


@pytest.mark.parametrize(
    ("labels", "are_sorted"),
    [
        ([k // 50 for k in range(150)], True),
        ([k // 16 for k in range(64)], True),
        ([k // 16 for k in range(63)], False),  # too few to say
        (np.random.default_rng(0).permutation(150) % 3, False),
        (np.random.default_rng(0).permutation(150) // 140, False),  # nearly all of one class
    ],
)
def test_tars_sorted_by_class_are_seen(tmp_path, labels, are_sorted):
    image = jpeg(0, 16, 16)
    samples = [(f"{k:03d}", {"jpg": image, "cls": int(label)}) for k, label in enumerate(labels)]
    by_webdataset(tmp_path / "train-a.tar", samples[:40])
    by_webdataset(tmp_path / "train-b.tar", samples[40:])
    adopt(tmp_path, executor=INLINE)
    assert Dataset.open(tmp_path).samples("train").are_sorted() == are_sorted


def as_json(label, **options):
    return json.dumps(label, **options).encode()


WRITERS = {
    "cls": lambda label: b"%d" % label,
    "padded.cls": lambda label: b"%09d" % label,
    "spaces.cls": lambda label: b"  %d \0\0" % label,
    "float.cls": lambda label: b"%d.0" % label,
    "json": lambda label: as_json({"label": label}),
    "float.json": lambda label: as_json({"label": float(label)}),
    "pretty.json": lambda label: as_json({"a": [1, 2], "label": label}, indent=2),
    "text.json": lambda label: as_json({"label": str(label), "z": "9"}),
    "far in.json": lambda label: as_json({"caption": "x" * (505 + label), "label": label}),
    "img2dataset.json": lambda label: as_json({"url": "http://a/1", "key": "01", "class": label}),
    "decoys.json": lambda label: as_json(
        {"meta": {"label": 7}, "caption": '"label": 3', "label": label, "class": 5, "x": {"label": 1}}
    ),
}


def test_labels_are_read_where_they_stand(tmp_path):
    for number, (kind, write) in enumerate(WRITERS.items()):
        members = []
        for k in range(12):
            suffix = kind.rpartition(".")[2]
            members += [(f"pic{k}-{number}.JPEG", jpeg(k)), (f"pic{k}-{number}.{suffix}", write(k))]
        place(tmp_path / f"train-{number}.tar", tar_bytes(members))
    assert len(adopt(tmp_path, executor=INLINE).classes) == 12
    assert labels_through_loader(tmp_path, "train") == {
        f"pic{k}-{number}": k for number in range(len(WRITERS)) for k in range(12)
    }


def test_keys_with_dots_folders_and_long_names(tmp_path):
    names = [f"dir.x/{'very' * 30}.{k}.photo" for k in range(6)] + ["ünï cödé 1", "ünï cödé 2"]
    members = []
    for k, name in enumerate(names):
        members += [(f"{name}.jpg", jpeg(k)), (f"{name}.cls", b"%d" % (k % 2))]
    place(tmp_path / "train.tar", tar_bytes(members, format=tarfile.PAX_FORMAT))
    adopt(tmp_path, executor=INLINE)
    found = labels_through_loader(tmp_path, "train")
    assert len(found) == 8
    assert sorted(found.values()) == [0] * 4 + [1] * 4
    lines = (tmp_path / "train.idx").read_text().splitlines()
    assert all(len(line.split()) == 8 for line in lines[1:])


def test_the_numbers_in_the_tars_are_the_labels_whatever_the_names_say(tmp_path):
    wnids = ["n00000003", "n00000001", "n00000002"]  # classes of the labels 0, 1 and 2
    samples = [(f"{wnids[k % 3]}_{k}", {"jpg": jpeg(k), "cls": k % 3}) for k in range(9)]
    by_webdataset(tmp_path / "train.tar", samples)
    manifest = adopt(tmp_path, executor=INLINE)
    assert [info.id for info in manifest.classes] == wnids
    assert labels_through_loader(tmp_path, "train") == labels_of(samples)


def test_images_that_cannot_be_loaded_are_left_out_of_the_index_and_reported(tmp_path):
    samples = rows(40, 4)
    whole = jpeg(3)
    samples[3][1]["jpg"] = whole[: len(whole) // 2]
    samples[11][1]["jpg"] = encoded(draw_image(9), "GIF")
    samples[20][1]["jpg"] = whole[:20] + b"stray" + whole[20:]  # between the header's segments
    samples[21][1]["jpg"] = encoded(draw_image(21), "PNG")
    samples[22][1]["jpg"] = encoded(Image.fromarray(draw_image(22)).convert("CMYK"), quality=95)
    by_webdataset(tmp_path / "train.tar", samples)
    by_webdataset(tmp_path / "train-bad.tar", [("bad", {"jpg": b"\xff\xd8", "cls": 0})])
    manifest = adopt(tmp_path, executor=INLINE, max_bad=0.1)
    assert [(shard.name, shard.samples) for shard in manifest.splits["train"]] == [("train.tar", 37)]
    assert not (tmp_path / "train-bad.idx").exists()
    first, *found = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert first["path"] == "train-bad.tar/bad.jpg"
    assert [(row["path"], row["action"]) for row in found] == [
        (f"train.tar/pic{k:04d}.jpg", "skipped") for k in (3, 11, 20)
    ]
    assert "GIF" in found[1]["reason"]
    kept = [row for k, row in enumerate(samples) if k not in (3, 11, 20)]
    assert labels_through_loader(tmp_path, "train") == labels_of(kept)


@pytest.mark.parametrize(
    ("bad", "max_bad", "message"),
    [
        ([3], 0.01, r"1 of 44 images .*train\.tar/pic0003\.jpg.*--max-bad"),
        ([7, 27], 0.5, "no decodable training images are left for 07"),
        (range(100, 104), 0.5, "no decodable images are left in val"),
    ],
)
def test_bad_images_that_make_it_fail_leave_no_manifest(tmp_path, bad, max_bad, message):
    for split, samples in (("train", rows(40, 20)), ("val", rows(4, 20, first=100))):
        for key, fields in samples:
            if int(key.removeprefix("pic")) in bad:
                fields["jpg"] = b"\xff\xd8 no image"
        by_webdataset(tmp_path / f"{split}.tar", samples)
    with pytest.raises(RunError, match=message):
        adopt(tmp_path, executor=INLINE, max_bad=max_bad)
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 1 + len(bad)
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "train.idx").exists()


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
        adopt(tmp_path, executor=INLINE)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tar"]


@pytest.mark.parametrize(
    ("tar", "cut", "other", "message"),
    [
        ("train.tar.gz", None, None, r"train\.tar\.gz: a compressed tar .* decompress it"),
        ("train.tar", -12000, None, r"train\.tar: (truncated|damaged) at offset [0-9,]+"),
        ("train.tar", None, "manifest.json", "is a dataset already"),
        ("train.tar", None, ".work/x", "unfinished"),
        ("train.tar", None, "report.csv", "of another kind, which would be replaced"),
    ],
)
def test_a_folder_that_cannot_be_adopted(tmp_path, tar, cut, other, message):
    path = by_webdataset(tmp_path / tar, rows(6, 2))
    path.write_bytes(path.read_bytes()[:cut])
    if other:
        place(tmp_path / other, b"{}")
    with pytest.raises(UsageError, match=message):
        adopt(tmp_path, executor=INLINE)


def test_no_folder_no_tars_and_a_bucket(tmp_path):
    refused(lambda: adopt(tmp_path / "nowhere"), "no such folder")
    refused(lambda: adopt(tmp_path), "no images found")
    refused(lambda: adopt("s3://bucket/set"), "copy them here first")


def test_a_place_that_cannot_be_written_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    by_webdataset(tmp_path / "sub" / "train.tar", rows(6, 2))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("sub"))
    refused(lambda: adopt(tmp_path, executor=INLINE), "sub cannot be written; make a folder of links")


def test_a_folder_of_links_will_do(tmp_path):
    samples = rows(6, 2)
    target = by_webdataset(tmp_path / "real" / "train.tar", samples)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train.tar").symlink_to(target)
    adopt(tmp_path / "links", executor=INLINE)
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["train.tar"]
    assert labels_through_loader(tmp_path / "links", "train") == labels_of(samples)
