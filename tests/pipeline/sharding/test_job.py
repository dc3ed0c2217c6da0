import csv
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from helpers import crashing
from helpers.folders import (
    SIZE,
    draw_image,
    encoded,
    is_running,
    needs_proc,
    place,
    python,
    refused,
    samples,
    times,
    tree,
    workers_of,
    write_source,
)
from helpers.hub_files import as_parquet
from helpers.inline import INLINE, InlineExecutor
from PIL import Image

from pipeline import (
    LocalExecutor,
    Options,
    SourceOptions,
    adopt,
    finish,
    prepare,
    prepare_slice,
    read_manifest,
    read_report,
    read_source,
)
from pipeline.errors import RunError
from pipeline.sharding.plan import make_plan, read_plan, shown_options, store_plan
from pipeline.sharding.task import ShardJob, run_shard
from pipeline.storage.locks import LockedError, locked
from pipeline.storage.open import open_store

OPTIONS = Options(size=SIZE, shard_samples=5)


def make(source, out, options=OPTIONS, executor=INLINE, **settings):
    return prepare(read_source(source), out, options, executor=executor, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 training and 12 validation images of three classes, all of the stored size."""
    root = write_source(tmp_path_factory.mktemp("preparation") / "source")
    place(root / "train" / "ant" / "ant_0.jpg", encoded(draw_image(0)[:, :, 0]))
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Output of an uninterrupted job; read-only."""
    out = tmp_path_factory.mktemp("whole")
    make(source, out)
    return out


def test_files_of_killed_writers_make_room_before_any_shard_is_made(source, tmp_path):
    (tmp_path / ".work").mkdir()
    left = place(tmp_path / "train" / ".writing-0123-train-000000.tar")
    seen = []

    class Watching(InlineExecutor):
        def run(self, *arguments):
            seen.append(left.exists())
            return super().run(*arguments)

    make(source, tmp_path, executor=Watching())
    assert seen
    assert not any(seen)


@pytest.fixture
def bad_source(tmp_path):
    """24 images: two of class ant do not decode, and one of class bee is a PNG."""
    root = write_source(tmp_path / "bad", train=8, val=0)
    place(root / "train" / "ant" / "ant_1.jpg", encoded(draw_image(1))[:-50])
    place(root / "train" / "ant" / "ant_2.jpg", b"")
    place(root / "train" / "bee" / "bee_9.jpg", encoded(draw_image(9), "PNG"))
    return root


# The finished dataset


def test_the_folder_holds_exactly_what_the_design_says(whole):
    shards = [f"train/train-{k:06d}" for k in range(5)] + [f"val/val-{k:06d}" for k in range(3)]
    expected = {"manifest.json", "mean_image.npy", "report.csv"}
    assert tree(whole).keys() == expected | {f"{name}{end}" for name in shards for end in (".tar", ".idx")}
    assert not (whole / ".work").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_image_is_stored_once_under_its_stem_with_its_label(source, whole, split):
    originals = {path.stem: path for path in (source / split).rglob("*.jpg")}
    stored = samples(whole, split)
    assert stored.keys() == originals.keys()
    for key, (data, label) in stored.items():
        assert label == b"%04d" % ("ant", "bee", "cat").index(originals[key].parent.name)
        with Image.open(io.BytesIO(data)) as found, Image.open(originals[key]) as original:
            assert (found.mode, found.size) == ("RGB", (SIZE, SIZE))
            assert np.abs(np.asarray(found, int) - np.asarray(original.convert("RGB"), int)).mean() < 5


def test_statistics_and_mean_image_are_those_of_the_training_pixels(source, whole):
    images = []
    for path in (source / "train").rglob("*.jpg"):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB"), np.int64))
    mean_image = (np.sum(images, axis=0) / len(images)).astype(np.float32)
    assert np.array_equal(np.load(whole / "mean_image.npy"), mean_image)
    found = read_manifest(whole).statistics
    pixels = np.reshape(images, (-1, 3))
    assert found.pixels == len(pixels) == 24 * SIZE * SIZE
    assert found.mean == tuple(int(s) / len(pixels) for s in pixels.sum(axis=0))
    assert np.allclose(found.covariance, np.cov(pixels.T, bias=True), rtol=1e-12)
    assert found.measured_on == "source"


def test_the_manifest_describes_what_is_on_disk(source, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["image"] == {"size": SIZE, "mode": "square", "quality": 95, "subsampling": "4:2:0"}
    assert [c["id"] for c in manifest["classes"]] == ["ant", "bee", "cat"]
    assert manifest["label_width"] == 4
    assert manifest["seed"] == 0
    fingerprint = read_source(source).fingerprint()
    assert manifest["source"] == {"layout": "images", "fingerprint": fingerprint}
    settings = {"shard_samples": 5, "max_megapixels": 100.0, "exif_rotate": False, "drop_duplicates": False}
    assert manifest["settings"] == shown_options(SourceOptions()) | settings


def test_a_dataset_that_keeps_aspect_ratios_has_no_mean_image(tmp_path):
    source = write_source(tmp_path / "source", train=2, val=0, height=60, width=97)
    manifest = make(source, tmp_path / "out", Options(size=40, keep_aspect=True))
    assert manifest.image.mode == "aspect"
    assert not (tmp_path / "out" / "mean_image.npy").exists()
    assert manifest.statistics.pixels == 6 * 40 * 65


def test_the_seed_shuffles_and_changes_nothing_else(source, whole, tmp_path):
    make(source, tmp_path / "out", replace(OPTIONS, seed=1))
    assert samples(tmp_path / "out", "train") == samples(whole, "train")
    assert list(samples(tmp_path / "out", "train")) != list(samples(whole, "train"))
    assert read_manifest(tmp_path / "out").statistics == read_manifest(whole).statistics


def test_every_byte_is_the_same_from_several_workers_which_count_every_image(source, whole, tmp_path):
    seen = []
    make(source, tmp_path / "out", executor=LocalExecutor(2), on_progress=lambda *done: seen.append(done))
    assert tree(tmp_path / "out") == tree(whole)
    assert seen == sorted(seen)
    assert seen[-1] == (36, 36)


# Running again


def test_a_finished_job_is_not_touched(source, whole):
    before = times(whole)
    assert make(source, whole) == read_manifest(whole)
    assert times(whole) == before


def test_a_finished_job_ignores_newer_libraries(source, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["versions"]["numpy"] = "1.0"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert make(source, out).versions["numpy"] == "1.0"


def test_a_damaged_finished_job_is_refused(source, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "val" / "val-000001.tar").unlink()
    refused(lambda: make(source, out), "val-000001.tar: missing")


@pytest.fixture
def unfinished(bad_source, tmp_path):
    """Output of a job on `bad_source` that failed because of its bad images."""
    refused(lambda: make(bad_source, tmp_path / "out", max_bad=0.07), error=RunError)
    return tmp_path / "out"


OTHERS = [
    (replace(OPTIONS, seed=1), r"--seed was 0, now 1"),
    (replace(OPTIONS, quality=90, keep_aspect=True), r"--keep-aspect was False, now True; --quality was 95"),
    (replace(OPTIONS, keep_original=True), r"--keep-original was False, now True"),
    (replace(OPTIONS, max_megapixels=3), "--max-megapixels was 100.0, now 3"),
]


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_a_finished_job_with_other_options_is_refused(source, whole, options, message):
    before = times(whole)
    refused(lambda: make(source, whole, options), message)
    assert times(whole) == before


def test_a_job_with_another_source_version_or_option_is_refused(bad_source, whole, unfinished):
    refused(lambda: make(bad_source, whole), "the source's files differ")
    before = tree(unfinished)
    refused(lambda: make(bad_source, unfinished, replace(OPTIONS, size=32)), "--size was 48, now 32")
    assert tree(unfinished) == before
    path = unfinished / ".work" / "plan.json"
    plan = path.read_bytes()
    path.write_bytes(plan.replace(b'"architecture": "', b'"architecture": "PDP-'))
    refused(lambda: make(bad_source, unfinished), "architecture was PDP-")
    path.write_bytes(plan)
    place(bad_source / "train" / "ant" / "more.jpg", encoded(draw_image(77)))
    refused(lambda: make(bad_source, unfinished), "the source's files differ")


def test_only_what_is_missing_is_done_again(source, whole, tmp_path):
    out = tmp_path / "out"
    prepare_slice(source, out, OPTIONS, 0, 1, executor=INLINE)
    before = times(out)
    (out / ".work" / "results" / "train-000001.json").unlink()
    (out / "train" / "train-000001.tar").write_bytes(b"half")
    make(source, out)
    assert tree(out) == tree(whole)
    again = {name for name, at in times(out).items() if name.endswith(".tar") and at != before[name]}
    assert again == {"train/train-000001.tar"}


# Bad images


def test_too_many_bad_images_fail_the_job_and_a_higher_limit_completes_it(bad_source, unfinished, tmp_path):
    parts = ("2 of 24 images", "--max-bad 7.00%", "train/ant/ant_1.jpg: Premature", "report.csv")
    refused(lambda: make(bad_source, unfinished, max_bad=0.07), *parts, error=RunError)
    assert not (unfinished / "manifest.json").exists()
    assert make(bad_source, unfinished, max_bad=2 / 24).samples("train") == 22
    with (unfinished / "report.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason", "action"],
            ["train/ant/ant_1.jpg", "Premature end of JPEG file", "skipped"],
            ["train/ant/ant_2.jpg", "empty file", "skipped"],
            ["train/bee/bee_9.jpg", "PNG (RGB) converted", "repaired"],
        ]
    make(bad_source, tmp_path / "again", max_bad=1)
    assert tree(unfinished) == tree(tmp_path / "again")


def test_an_image_repaired_in_place_is_read_again(bad_source, unfinished):
    path = bad_source / "train" / "ant" / "ant_1.jpg"
    good = encoded(draw_image(5), quality=20)
    path.write_bytes(good.ljust(path.stat().st_size, b"\0"))  # of the same size: the fingerprint is unchanged
    refused(lambda: make(bad_source, unfinished, max_bad=0), "1 of 24 images", error=RunError)
    assert make(bad_source, unfinished, max_bad=1 / 24).samples("train") == 23


def test_a_shard_of_bad_images_only_leaves_no_file(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=1)
    for path in (source / "val" / "bee").iterdir():
        path.write_bytes(b"")
    manifest = make(source, tmp_path / "out", replace(OPTIONS, shard_samples=1), max_bad=0.5)
    assert manifest.samples("val") == len(manifest.splits["val"]) == 2
    assert len(list((tmp_path / "out" / "val").glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("train/bee", "no decodable training images are left for bee;"),
        ("val", "no decodable images are left in val; see report.csv"),
    ],
)
def test_a_class_or_split_that_lost_all_its_images_is_refused_until_they_are_repaired(
    tmp_path, lost, message
):
    source, out = write_source(tmp_path / "source", train=3, val=1), tmp_path / "out"
    kept = {path: path.read_bytes() for path in (source / lost).rglob("*.jpg")}
    for path, data in kept.items():
        path.write_bytes(bytes(len(data)))
    for _ in range(2):
        refused(lambda: make(source, out, max_bad=1), message, error=RunError)
    assert not (out / "manifest.json").exists()
    for path, data in kept.items():
        path.write_bytes(data)
    assert make(source, out, max_bad=1).samples("train") == 9


def test_odd_names_and_files_too_large_reach_the_report_and_pipes_are_left_out(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=0)
    odd = 'é, "quoted"\nnew line.jpg'
    place(source / "train" / "ant" / odd, b"bad")
    os.mkfifo(source / "train" / "ant" / "pipe.jpg")
    with (source / "train" / "ant" / "huge.jpg").open("wb") as file:
        file.truncate(2**42)  # a sparse file, which needs no disk space
    assert make(source, tmp_path / "out", max_bad=1).samples("train") == 9
    assert {row["path"]: row["reason"] for row in read_report(tmp_path / "out")} == {
        "train/ant/huge.jpg": "unreadable file: larger than 867,108,864 bytes",
        f"train/ant/{odd}": "not an image in a known format",
    }


# Output folders


def test_the_source_as_output_is_refused(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link"):
        refused(lambda out=out: make(source, out), f"output {out}: it is the source")


def test_an_output_inside_the_source_is_no_part_of_it(source, whole, tmp_path):
    inside = shutil.copytree(source, tmp_path / "source")
    for _ in range(2):  # the second time the dataset is there already
        make(inside, inside / "shards")
    assert tree(inside / "shards") == tree(whole)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("out/thesis.tex", b"", "holds other files"),
        ("out/manifest.json", b'{"name": "a web app"}', "format version None"),
        ("out/.work/thesis.tex", b"", "holds other files"),
        ("out", b"", "it is a file"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_output_with_something_else_is_refused_and_kept(source, tmp_path, file, data, message, force):
    place(tmp_path / file, data)
    before = tree(tmp_path)
    refused(lambda: make(source, tmp_path / "out", force=force), message)
    assert tree(tmp_path) == before


def test_a_lock_that_is_held_is_refused(source, whole, tmp_path):
    out, debris = tmp_path / "out", ("lost+found/1.jpg", ".DS_Store")  # as on a new disk
    for name in debris:
        place(out / name)
    with locked(out / ".work" / "job.lock", out):
        refused(lambda: make(source, out), "--take-over", error=LockedError)
    make(source, out)
    assert tree(out) == tree(whole) | dict.fromkeys(debris, sha256(b"not empty").hexdigest())


@pytest.mark.parametrize("unfinished", [False, True])
def test_force_replaces_our_own_output_and_no_file_of_others(source, whole, tmp_path, unfinished):
    out, few = tmp_path / "out", replace(OPTIONS, shard_samples=2)
    if unfinished:
        prepare_slice(source, out, few, 0, 2, executor=INLINE)
    else:
        make(source, out, few)
    refused(lambda: make(source, out), "holds output of another run" if unfinished else "--shard-samples")
    foreign = ("notes.txt", "train/notes.txt", *([".work/mine"] if unfinished else []))
    for name in foreign:
        place(out / name)
    make(source, out, force=True)
    assert tree(out) == tree(whole) | dict.fromkeys(foreign, sha256(b"not empty").hexdigest())


def test_force_refuses_files_in_the_way_before_it_removes_any(source, tmp_path):
    out = tmp_path / "out"
    make(source, out)
    place(out / "train" / "train-000011.tar")
    before = tree(out)
    call = partial(make, source, out, replace(OPTIONS, shard_samples=2), force=True)
    refused(call, "train-000011.tar: is in the way")
    assert tree(out) == before


def test_tars_of_other_tools_are_not_replaced(source, whole, tmp_path):
    tars = shutil.copytree(whole, tmp_path / "tars")
    for path in [*tars.rglob("*.idx"), *tars.glob("*.*")]:
        path.unlink()
    adopt(tars, size=SIZE)
    before = tree(tars)
    refused(lambda: make(source, tars, force=True), "another tool's")
    assert tree(tars) == before


def test_results_of_another_plan_are_refused(source, tmp_path):
    listed = read_source(source)
    for name, options in (("one", OPTIONS), ("two", replace(OPTIONS, quality=20))):
        out = open_store(tmp_path / name)
        store_plan(out, *make_plan(listed, options))
        for shard in read_plan(out).shards:
            run_shard(ShardJob(open_store(source), out, tmp_path / "scratch"), shard.name)
    result = ".work/results/train-000001.json"
    shutil.copy(tmp_path / "two" / result, tmp_path / "one" / result)
    refused(lambda: finish(tmp_path / "one"), "train-000001 was made for another plan", error=RunError)
    assert not (tmp_path / "one" / "manifest.json").exists()


def test_jobs_that_share_a_scratch_folder_share_nothing_in_it(tmp_path):
    trees = {}
    for name in ("a", "b"):
        source = write_source(tmp_path / name / "source", train=4, val=2)
        if name == "b":  # other images with the same names
            for number, path in enumerate(sorted(source.rglob("*.jpg"))):
                path.write_bytes(encoded(draw_image(100 + number), quality=90))
        as_parquet(source, tmp_path / name / "parquet", name=lambda path, _: path.name)
        make(tmp_path / name / "parquet", tmp_path / name / "alone")
        make(tmp_path / name / "parquet", tmp_path / name / "shared", scratch=tmp_path / "scratch")
        trees[name] = tree(tmp_path / name / "alone")
        assert tree(tmp_path / name / "shared") == trees[name]
    assert trees["a"] != trees["b"]
    assert tree(tmp_path / "scratch") == {}


# A kill at each file operation


def visible(out):
    """File tree of the output without `.work` and temporary files: the files that readers may open."""
    return {
        name: digest
        for name, digest in tree(out).items()
        if not name.startswith(".work/") and not Path(name).name.startswith(".writing-")
    }


def test_a_kill_at_any_operation_leaves_whole_files_and_a_job_that_completes(tmp_path):
    source = write_source(tmp_path / "source", train=2, val=1, classes=("ant", "bee"))
    place(source / "train" / "ant" / "bad.jpg")
    shutil.copy(next((source / "val" / "bee").iterdir()), source / "train" / "bee" / "twin.jpg")
    make(source, tmp_path / "whole", crashing.OPTIONS, max_bad=1)
    whole = tree(tmp_path / "whole")
    command = [sys.executable, "-m", "helpers.crashing", source, tmp_path / "jobs"]
    paths = {"PYTHONPATH": str(Path(crashing.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    partial = 0
    for number in range(int(done.stdout)):
        out = tmp_path / "jobs" / str(number)
        assert visible(out).items() <= whole.items(), f"killed at operation {number}"
        partial += ".writing-" in str(sorted(tree(out)))
        make(source, out, crashing.OPTIONS, max_bad=1)
        assert tree(out) == whole, f"killed at operation {number}"
    # 3 files of the plan, the digests of val, 2 shards of 4 or 5 files, and 3 of the whole dataset are
    # written: each is synced and renamed, its folder is synced, and its temporary name removed.
    assert partial >= 2 * (3 + 1 + 4 + 5 + 3)  # enough kills hit a half-written file


# Kills of a real process and its workers

PATIENCE = 60  # seconds after which a wait fails


class Blocked:
    """A process that makes five shards with two workers, one of which waits for an image: it is a pipe."""

    def __init__(self, folder):
        self.source, self.out = write_source(folder / "source", train=8, val=0), folder / "out"
        plan, shards = make_plan(read_source(self.source), OPTIONS)
        store_plan(open_store(self.out), plan, shards)
        self.pipe = next((self.source / "train" / "bee").iterdir())
        self.image = self.pipe.read_bytes()
        make(self.source, folder / "reference")
        self.reference = tree(folder / "reference")
        self.pipe.unlink()
        os.mkfifo(self.pipe)
        heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells let others ignore it
        self.process = start(self.source, self.out, "--workers", 2, "--task", "0/1", preexec_fn=heed_ctrl_c)
        self.wait_until(lambda: len(list((self.out / ".work" / "results").glob("[!.]*.json"))) == 4)

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)

    def complete(self):
        """Put the image in the pipe's place, complete the job, and compare its bytes."""
        kept = {name: at for name, at in times(self.out).items() if name.endswith(".tar")}
        assert len(kept) >= 4
        self.pipe.unlink()
        place(self.pipe, self.image)
        make(self.source, self.out)
        assert kept.items() <= times(self.out).items()
        assert tree(self.out) == self.reference


def start(source, out, *options, **settings):
    """Start `alexnet-prep shard` on a job with `OPTIONS`, in a process group of its own."""
    words = ["shard", source, out, "--size", SIZE, "--shard-samples", 5, *options]
    command = "from cli.prep import main; main()"
    return python(command, *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)


def end(process):
    """Wait for a process; return its exit code and its stderr."""
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


@pytest.fixture
def blocked(tmp_path):
    job = Blocked(tmp_path)
    yield job
    if job.process.poll() is None:
        os.killpg(job.process.pid, signal.SIGKILL)


@needs_proc
def test_a_killed_worker_is_a_run_error_and_the_job_can_be_completed(blocked):
    refused(lambda: make(blocked.source, blocked.out), "--take-over")
    for pid in workers_of(blocked.process.pid):  # the busy one, whose death matters, is among them
        os.kill(pid, signal.SIGKILL)
    code, err = end(blocked.process)
    assert code == 1
    assert err.startswith("error: a worker process died (killed, or out of memory); what was finished is")
    assert err.count("\n") == 1
    blocked.complete()


@needs_proc
def test_workers_do_not_outlive_a_killed_parent(blocked):
    family = workers_of(blocked.process.pid)
    assert len(family) == 2
    blocked.process.kill()  # only the parent, while one worker is busy and the other idle
    end(blocked.process)
    blocked.wait_until(lambda: not any(map(is_running, family)))
    blocked.complete()


def test_ctrl_c_keeps_what_is_finished(blocked):
    blocked.process.send_signal(signal.SIGINT)
    blocked.pipe.write_bytes(blocked.image)  # a task that has begun is finished
    code, err = end(blocked.process)
    assert (code, err) == (130, "error: stopped; the same command continues with what is left\n")
    blocked.complete()


def test_a_file_that_may_not_grow_is_one_line_and_completes_later(source, whole, tmp_path):
    out, expected = tmp_path / "out", tree(whole)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
    code, err = end(start(source, out, "--workers", 2, preexec_fn=limit))
    assert code == 1
    assert err.startswith(f"error: cannot write {out}/")
    assert "File too large; free space or choose another path" in err
    assert err.count("\n") == 1
    left = tree(out)
    assert ".writing-" not in str(left.keys())
    assert {name: left[name] for name in left if not name.startswith(".work/")}.items() <= expected.items()
    make(source, out)
    assert tree(out) == expected
