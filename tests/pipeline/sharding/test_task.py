import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import crashing
from helpers.folders import SIZE, draw_image, encoded, is_root, members, place, tree, write_source
from PIL import Image

from pipeline import prepare, read_source
from pipeline.dataset.report import ReportRow
from pipeline.dataset.work import versions
from pipeline.errors import RunError
from pipeline.images.codec import encode
from pipeline.images.statistics import Moments
from pipeline.sharding.plan import Options, Plan, ShardPlan, make_plan, store_plan
from pipeline.sharding.task import ShardJob, finished, forget, last_name, read_result, run_shard, run_task
from pipeline.sources.base import Container, Sample
from pipeline.storage.open import open_store


def plan_for(*files, split="train"):
    samples = tuple(Sample(name, label, f"key{label}") for label, name in enumerate(files))
    return ShardPlan(f"{split}/{split}-000000", split, samples)


def run(tmp_path, shard, containers=(), **options):
    classes = tuple((str(k), str(k)) for k in range(9))
    settings = Options(**{"size": SIZE, **options})
    plan = Plan(settings, "", "folders", "", classes, containers, versions(), ())
    out = tmp_path / "out"
    return run_task(ShardJob(str(tmp_path), str(out), str(out / ".work")), open_store(out), plan, shard)


def test_samples_are_written_in_the_order_of_the_plan(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        place(tmp_path / name, encoded(draw_image(name == "a.jpg")))
    result = run(tmp_path, plan_for("b.jpg", "a.jpg"))
    stored = members(tmp_path / "out" / "train" / "train-000000.tar")
    assert [name for name, _ in stored] == ["key0.jpg", "key0.cls", "key1.jpg", "key1.cls"]
    assert [data for _, data in stored[1::2]] == [b"0000", b"0001"]
    assert result.shard.name == "train/train-000000.tar"
    assert result.shard.samples == 2
    assert result.labels == {0: 1, 1: 1}
    assert result.report_rows == ()


def test_bad_images_are_skipped_with_their_reason(tmp_path):
    narrow = Image.fromarray(np.zeros((1, 2000), np.uint8))
    place(tmp_path / "good.jpg", encoded(draw_image(0)))
    place(tmp_path / "cut.jpg", encoded(draw_image(1))[:-2])
    place(tmp_path / "converted.jpg", encoded(draw_image(2), "PNG"))
    place(tmp_path / "narrow.jpg", encoded(narrow))
    (tmp_path / "folder.jpg").mkdir()
    plan = plan_for("cut.jpg", "good.jpg", "gone.jpg", "converted.jpg", "narrow.jpg", "folder.jpg")
    result = run(tmp_path, plan, keep_aspect=True)
    assert result.report_rows == (
        ReportRow("converted.jpg", "PNG (RGB) converted", "repaired"),
        ReportRow("cut.jpg", "Premature end of JPEG file", "skipped"),
        ReportRow("folder.jpg", "unreadable file: Is a directory", "skipped"),
        ReportRow("gone.jpg", "unreadable file: No such file or directory", "skipped"),
        ReportRow("narrow.jpg", "2000x1 pixels are too narrow to scale to a shorter side of 48", "skipped"),
    )
    assert result.labels == {1: 1, 3: 1}
    assert result.images == 2


@pytest.mark.skipif(is_root(), reason="root may read anything")
def test_a_file_without_permission_is_skipped(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0))).chmod(0)
    assert run(tmp_path, plan_for("a.jpg")).report_rows[0].reason == "unreadable file: Permission denied"


def test_a_shard_of_bad_images_only_is_finished_without_a_tar(tmp_path):
    place(tmp_path / "a.jpg")
    plan = plan_for("a.jpg")
    assert run(tmp_path, plan).shard is None
    assert list((tmp_path / "out" / "train").iterdir()) == []
    assert finished(open_store(tmp_path / "out")) == {"train-000000"}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_moments_are_those_of_the_training_pixels_before_encoding(tmp_path, split, keep_aspect):
    images = [draw_image(k, SIZE, SIZE + 10 * k) for k in range(3)]
    for k, pixels in enumerate(images):
        place(tmp_path / f"{k}.png", encoded(pixels, "PNG"))
    plan = plan_for("0.png", "1.png", "2.png", split=split)
    result = run(tmp_path, plan, keep_aspect=keep_aspect)
    expected = Moments() if keep_aspect or split != "train" else Moments.for_square(SIZE)
    if split == "train":
        for k, pixels in enumerate(images):
            expected.add(pixels if keep_aspect else pixels[:, 5 * k : 5 * k + SIZE])
    stored, moments = read_result(open_store(tmp_path / "out"), plan.name)
    assert stored == result
    assert (moments.images, moments.count) == (expected.images, expected.count)
    assert np.array_equal(moments.sums, expected.sums)
    assert np.array_equal(moments.products, expected.products)
    assert moments.sums.dtype == moments.products.dtype == np.int64
    if expected.image_sum is None:
        assert moments.image_sum is None
    else:
        assert np.array_equal(moments.image_sum, expected.image_sum)


@pytest.mark.parametrize(("keep_aspect", "shape"), [(False, (20, 20)), (True, (20, 30))])
def test_images_are_stored_at_the_size_asked_for(tmp_path, keep_aspect, shape):
    place(tmp_path / "a.png", encoded(draw_image(0, 40, 60), "PNG"))
    run(tmp_path, plan_for("a.png"), size=20, keep_aspect=keep_aspect, quality=98)
    data = members(tmp_path / "out" / "train" / "train-000000.tar")[0][1]
    found = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    assert found.shape == (*shape, 3)
    halved = draw_image(0, 40, 60).reshape(20, 2, 30, 2, 3).mean(axis=(1, 3))
    expected = halved if keep_aspect else halved[:, 5:25]
    assert np.abs(found - expected).mean() < 6  # JPEG loses the color of fine grain
    assert np.abs(found.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 1.5


def test_larger_images_than_allowed_are_skipped(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0, 100, 101)))
    result = run(tmp_path, plan_for("a.jpg"), max_megapixels=0.01)
    assert result.report_rows[0].reason == "101x100 pixels are more than 0.01 megapixels"


def test_a_file_that_changed_since_it_was_listed_is_skipped(tmp_path):
    data = encoded(draw_image(0))
    place(tmp_path / "a.jpg", data)
    plan = ShardPlan("train/train-000000", "train", (Sample("a.jpg", 0, "a", len(data) + 1),))
    result = run(tmp_path, plan)
    reason = f"has {len(data)} bytes now, but {len(data) + 1} when it was listed"
    assert result.report_rows == (ReportRow("a.jpg", reason, "skipped"),)


def test_members_of_a_container_are_read_at_their_place(tmp_path):
    images = [encoded(draw_image(k), "PNG") for k in range(3)]
    place(tmp_path / "all.bin", b"head" + b"".join(images))
    samples, at = [], 4
    for k, data in enumerate(images):
        samples.append(Sample(f"{k}.png", k, f"key{k}", len(data), 0, at))
        at += len(data)
    samples.append(Sample("beyond.png", 3, "key3", 100, 0, at))
    plan = ShardPlan("train/train-000000", "train", tuple(reversed(samples)))
    result = run(tmp_path, plan, (Container("all.bin", at),))
    stored = members(tmp_path / "out" / "train" / "train-000000.tar")
    assert [name for name, _ in stored[::2]] == ["key2.jpg", "key1.jpg", "key0.jpg"]  # the plan's order
    assert [data for _, data in stored[::2]] == [encode(draw_image(k), 95) for k in (2, 1, 0)]
    skipped = [report_row for report_row in result.report_rows if report_row.action == "skipped"]
    assert [report_row.path for report_row in skipped] == ["all.bin/beyond.png"]
    assert result.labels == {0: 1, 1: 1, 2: 1}


def test_original_bytes_are_stored_untouched(tmp_path):
    jpeg = encoded(draw_image(0, 60, 90), quality=80, comment=b"kept")
    png = encoded(draw_image(1, 60, 90), "PNG")
    place(tmp_path / "a.jpg", jpeg)
    place(tmp_path / "b.png", png)
    result = run(tmp_path, plan_for("a.jpg", "b.png"), keep_original=True)
    stored = members(tmp_path / "out" / "train" / "train-000000.tar")
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
    run(tmp_path, plan_for("a.png"), keep_aspect=True, size=40)
    assert size_of_first(tmp_path) == (60, 40)
    result = run(tmp_path, plan_for("a.png"), keep_aspect=True, size=40, exif_rotate=True)
    assert size_of_first(tmp_path) == (40, 60)
    assert "rotated by EXIF orientation 6" in result.report_rows[0].reason


def size_of_first(tmp_path):
    (_, data), *_ = members(tmp_path / "out" / "train" / "train-000000.tar")
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def test_a_result_records_its_libraries_and_other_ones_are_refused(tmp_path):
    for label in range(2):
        place(tmp_path / "source" / str(label) / f"{label}.jpg", encoded(draw_image(label)))
    plan, shards = make_plan(read_source(tmp_path / "source"), Options(size=SIZE))
    out = open_store(tmp_path / "out")
    store_plan(out, replace(plan, versions=plan.versions | {"pillow": "1.0"}), shards)
    job = ShardJob(str(tmp_path / "source"), str(tmp_path / "out"), str(tmp_path / "scratch"))
    with pytest.raises(RunError, match=r"this machine has pillow .* instead of 1\.0"):
        run_shard(job, shards[0].name)
    assert finished(out) == set()


def test_a_damaged_result_is_one_line(tmp_path):
    place(tmp_path / ".work" / "results" / "train-000000.json", b"{")
    with pytest.raises(RunError, match=r"train-000000\.json: damaged .*; delete it and run"):
        read_result(open_store(tmp_path), "train/train-000000")


def test_what_is_forgotten_is_unfinished(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0)))
    out = open_store(tmp_path / "out")
    assert finished(out) == set()
    run(tmp_path, plan_for("a.jpg"))
    assert finished(out) == {"train-000000"}
    forget(out, "train/train-000000")
    assert finished(out) == set()


def test_an_output_that_cannot_be_written_is_a_run_error(tmp_path):
    place(tmp_path / "a.jpg", encoded(draw_image(0)))
    place(tmp_path / "out" / "train")
    with pytest.raises(RunError, match=r"cannot create the folder .*out/train"):
        run(tmp_path, plan_for("a.jpg"))


# A kill after every disk operation


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = write_source(tmp_path_factory.mktemp("crash") / "source", train=4, val=2)
    place(root / "train" / "ant" / "bad.jpg")
    return root


def run_tasks(source, out):
    """Run the job's unfinished tasks in this process."""
    plan, shards = make_plan(read_source(source), crashing.OPTIONS)
    store = open_store(out)
    for shard in shards:
        if last_name(shard.name) not in finished(store):
            run_task(ShardJob(str(source), str(out), str(out / ".work")), store, plan, shard)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """File tree of an uninterrupted job's output."""
    out = tmp_path_factory.mktemp("whole")
    prepare(read_source(source), out, crashing.OPTIONS, max_bad=1)
    return tree(out)


def crash(step, source, start, folder):
    command = [sys.executable, "-m", "helpers.crashing", step, source, start, folder]
    paths = {"PYTHONPATH": str(Path(crashing.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def visible(out):
    """File tree of the output without `.work` and temporary files: the files that readers may open."""
    return {
        name: digest
        for name, digest in tree(out).items()
        if not name.startswith(".work/") and not Path(name).name.startswith(".writing-")
    }


@pytest.mark.parametrize(("step", "files"), [("task", 4), ("finish", 3)])
def test_a_kill_at_any_operation_leaves_whole_files_and_a_job_that_completes(
    source, whole, tmp_path, step, files
):
    start = tmp_path / "start"
    if step == "finish":
        run_tasks(source, start)
    else:
        for folder in (".work/results", "train", "val"):
            (start / folder).mkdir(parents=True)
    copies = crash(step, source, start, tmp_path / "copies")
    # The files are tar, index, sums and result, or report, mean image and manifest. Each is synced and
    # renamed, its folder is synced, and its temporary name removed.
    assert copies > 4 * files
    partial = 0
    for number in range(copies):
        out = tmp_path / "copies" / str(number)
        assert visible(out).items() <= whole.items(), f"killed at operation {number}"
        partial += ".writing-" in str(sorted(tree(out)))
        if step == "task":
            run_tasks(source, out)
        prepare(read_source(source), out, crashing.OPTIONS, max_bad=1)
        assert tree(out) == whole, f"killed at operation {number}"
        shutil.rmtree(out)
    assert partial >= 2 * files  # enough kills hit a half-written file
