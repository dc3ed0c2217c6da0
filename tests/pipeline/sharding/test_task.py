from dataclasses import replace

import numpy as np
import pytest
from helpers.codec_files import pillow
from helpers.folders import SIZE, draw_image, encoded, members, place
from PIL import Image

from pipeline.dataset.report import ReportRow
from pipeline.dataset.work import versions
from pipeline.errors import RunError
from pipeline.images.codec import encode
from pipeline.images.statistics import Moments
from pipeline.sharding.plan import Options, Plan, ShardPlan, store_plan
from pipeline.sharding.result import finished, read_result
from pipeline.sharding.task import ShardJob, run_shard
from pipeline.sources.base import AS_FOUND, Container, Sample
from pipeline.storage.open import open_store

TAR = "out/train/train-000000.tar"
CLASSES = tuple((str(k), str(k)) for k in range(9))
PLAN = Plan(Options(size=SIZE), "", "images", AS_FOUND, "", CLASSES, (), versions(), ())


def run(tmp_path, *files, split="train", plan=PLAN, **options):
    """Make a shard of the files below `tmp_path`, whose labels are their positions; the keys count them."""
    samples = tuple(
        file if isinstance(file, Sample) else Sample(file, label, f"key{label}")
        for label, file in enumerate(files)
    )
    job = ShardJob(open_store(tmp_path), open_store(tmp_path / "out"), tmp_path / "scratch")
    shard = ShardPlan(f"{split}/{split}-000000", split, samples)
    store_plan(job.out, replace(plan, options=replace(plan.options, **options)), [shard])
    return run_shard(job, shard.name)


def stored_pixels(tmp_path):
    """Pixels of the first image in the shard."""
    return pillow(members(tmp_path / TAR)[0][1]).astype(float)


def test_bad_images_are_skipped_with_their_reason(tmp_path):
    good = encoded(draw_image(0))
    for name, data in {
        "good.jpg": good,
        "changed.jpg": good,
        "cut.jpg": good[:-2],
        "converted.jpg": encoded(draw_image(2), "PNG"),
        "large.jpg": encoded(draw_image(0, 100, 101)),
        "narrow.jpg": encoded(np.zeros((1, 2000), np.uint8)),
    }.items():
        place(tmp_path / name, data)
    (tmp_path / "folder.jpg").mkdir()
    changed = Sample("changed.jpg", 7, "key7", len(good) + 1)
    names = [f"{name}.jpg" for name in ("cut", "good", "gone", "converted", "narrow", "folder", "large")]
    result = run(tmp_path, *names, changed, keep_aspect=True, max_megapixels=0.01)
    assert result.report_rows == (
        ReportRow(
            "changed.jpg", f"has {len(good)} bytes now, but {len(good) + 1} when it was listed", "skipped"
        ),
        ReportRow("converted.jpg", "PNG (RGB) converted", "repaired"),
        ReportRow("cut.jpg", "Premature end of JPEG file", "skipped"),
        ReportRow("folder.jpg", "unreadable file: Is a directory", "skipped"),
        ReportRow("gone.jpg", "unreadable file: No such file or directory", "skipped"),
        ReportRow("large.jpg", "101x100 pixels are more than 0.01 megapixels", "skipped"),
        ReportRow("narrow.jpg", "2000x1 pixels are too narrow to scale to a shorter side of 48", "skipped"),
    )
    assert result.labels == {1: 1, 3: 1}
    assert result.images == 2


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_moments_are_those_of_the_training_pixels_before_encoding(tmp_path, split, keep_aspect):
    images = [draw_image(k, SIZE, SIZE + 10 * k) for k in range(3)]
    for k, pixels in enumerate(images):
        place(tmp_path / f"{k}.png", encoded(pixels, "PNG"))
    result = run(tmp_path, "0.png", "1.png", "2.png", split=split, keep_aspect=keep_aspect)
    expected = Moments() if keep_aspect or split != "train" else Moments.for_square(SIZE)
    if split == "train":
        for k, pixels in enumerate(images):
            expected.add(pixels if keep_aspect else pixels[:, 5 * k : 5 * k + SIZE])
    stored, moments = read_result(open_store(tmp_path / "out"), result.name)
    assert stored == result
    assert (moments.images, moments.count) == (expected.images, expected.count)
    for found, wanted in ((moments.sums, expected.sums), (moments.products, expected.products)):
        assert found.dtype == np.int64
        assert np.array_equal(found, wanted)
    assert (moments.image_sum is None) == (expected.image_sum is None)
    assert moments.image_sum is None or np.array_equal(moments.image_sum, expected.image_sum)


@pytest.mark.parametrize(("keep_aspect", "shape"), [(False, (20, 20)), (True, (20, 30))])
def test_images_are_stored_at_the_size_asked_for(tmp_path, keep_aspect, shape):
    place(tmp_path / "a.png", encoded(draw_image(0, 40, 60), "PNG"))
    run(tmp_path, "a.png", size=20, keep_aspect=keep_aspect, quality=98)
    found = stored_pixels(tmp_path)
    assert found.shape == (*shape, 3)
    halved = draw_image(0, 40, 60).reshape(20, 2, 30, 2, 3).mean(axis=(1, 3))
    expected = halved if keep_aspect else halved[:, 5:25]
    assert np.abs(found - expected).mean() < 6  # JPEG loses the color of fine grain
    assert np.abs(found.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 1.5


def test_images_in_a_container_are_read_by_offset_and_size(tmp_path):
    images = [encoded(draw_image(k), "PNG") for k in range(3)]
    at = [0, *np.cumsum([len(data) for data in images]).tolist()]
    place(tmp_path / "all.bin", b"".join(images))
    samples = [Sample(f"{k}.png", k, f"key{k}", len(data), 0, at[k]) for k, data in enumerate(images)]
    beyond = Sample("beyond.png", 3, "key3", 100, 0, at[3])
    plan = replace(PLAN, containers=(Container("all.bin", at[3]),))
    result = run(tmp_path, beyond, *reversed(samples), plan=plan)
    stored = members(tmp_path / TAR)
    assert [name for name, _ in stored[::2]] == ["key2.jpg", "key1.jpg", "key0.jpg"]  # the plan's order
    assert [data for _, data in stored[::2]] == [encode(draw_image(k), 95) for k in (2, 1, 0)]
    skipped = [report_row.path for report_row in result.report_rows if report_row.action == "skipped"]
    assert skipped == ["all.bin/beyond.png"]
    assert result.labels == {0: 1, 1: 1, 2: 1}


def test_original_files_are_kept_and_others_encoded_at_full_size(tmp_path):
    jpeg = encoded(draw_image(0, 60, 90), quality=80, comment=b"kept")
    place(tmp_path / "a.jpg", jpeg)
    place(tmp_path / "b.png", encoded(draw_image(1, 60, 90), "PNG"))
    result = run(tmp_path, "a.jpg", "b.png", keep_original=True)
    stored = members(tmp_path / TAR)
    assert stored[0] == ("key0.jpg", jpeg)
    assert stored[2] == ("key1.jpg", encode(draw_image(1, 60, 90), 95))
    assert result.report_rows == (ReportRow("b.png", "PNG (RGB) converted", "repaired"),)
    # Statistics are measured on images scaled as on loading: 48 x 72 pixels each.
    assert result.count == 2 * SIZE * SIZE * 3 // 2
    assert not result.image_sum


def test_rotation_is_applied_on_request_and_reported(tmp_path):
    wide = Image.fromarray(draw_image(0, 40, 60))
    exif = wide.getexif()
    exif[0x0112] = 6
    place(tmp_path / "a.png", encoded(wide, "PNG", exif=exif))
    run(tmp_path, "a.png", keep_aspect=True, size=40)
    assert stored_pixels(tmp_path).shape == (40, 60, 3)
    result = run(tmp_path, "a.png", keep_aspect=True, size=40, exif_rotate=True)
    assert stored_pixels(tmp_path).shape == (60, 40, 3)
    assert "rotated by EXIF orientation 6" in result.report_rows[0].reason


def test_other_libraries_than_the_plans_are_refused(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0)))
    with pytest.raises(RunError, match=r"this machine has pillow .* instead of 1\.0"):
        run(tmp_path, "a.jpg", plan=replace(PLAN, versions=versions() | {"pillow": "1.0"}))
    assert finished(open_store(tmp_path / "out")) == set()


def test_a_damaged_result_is_one_line(tmp_path):
    place(tmp_path / ".work" / "results" / "train-000000.json", b"{")
    with pytest.raises(RunError, match=r"train-000000\.json: damaged .*; delete it and run"):
        read_result(open_store(tmp_path), "train/train-000000")


def test_an_output_that_cannot_be_written_is_a_run_error(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0)))
    place(tmp_path / "out" / "train")
    with pytest.raises(RunError, match=r"cannot create the folder .*out/train"):
        run(tmp_path, "a.jpg")
