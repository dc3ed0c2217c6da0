import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from helpers.folders import (
    SIZE,
    draw_image,
    encoded,
    is_running,
    needs_proc,
    place,
    python,
    samples,
    times,
    tree,
    workers_of,
    write_source,
)
from helpers.hub_files import as_parquet
from PIL import Image

from pipeline import LocalExecutor, Options, finish, prepare, read_manifest, read_report, read_source
from pipeline.errors import RunError, UsageError
from pipeline.sharding.plan import make_plan, read_plan, store_plan
from pipeline.sharding.task import ShardJob, run_shard
from pipeline.storage.open import open_store

OPTIONS = Options(size=SIZE, shard_samples=5)


def make(source, out, options=OPTIONS, workers=1, **settings):
    found = read_source(source, "auto", options.val_fraction, options.seed)
    return prepare(found, out, options, executor=LocalExecutor(workers), **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 training and 12 validation images of three classes, all of the stored size."""
    root = write_source(tmp_path_factory.mktemp("preparation") / "source")
    gray = Image.fromarray(draw_image(0)[:, :, 0])
    place(root / "train" / "ant" / "ant_0.jpg", encoded(gray))
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Output of an uninterrupted job; read-only."""
    out = tmp_path_factory.mktemp("whole")
    make(source, out)
    return out


@pytest.fixture
def bad_source(tmp_path):
    """24 images: two of class ant do not decode, and one of class bee is a PNG."""
    root = write_source(tmp_path / "bad", train=8, val=0)
    (root / "val").rmdir() if (root / "val").exists() else None
    place(root / "train" / "ant" / "ant_1.jpg", encoded(draw_image(1))[:-50])
    place(root / "train" / "ant" / "ant_2.jpg", b"")
    place(root / "train" / "bee" / "bee_9.jpg", encoded(draw_image(9), "PNG"))
    return root


# The finished dataset


def test_the_folder_holds_exactly_what_the_design_says(whole):
    shards = [f"train/train-{k:06d}" for k in range(5)] + [f"val/val-{k:06d}" for k in range(3)]
    expected = {"manifest.json", "mean_image.npy", "report.csv"}
    expected |= {f"{name}{suffix}" for name in shards for suffix in (".tar", ".idx")}
    assert tree(whole).keys() == expected
    assert not (whole / ".work").exists()


def test_every_image_is_stored_once_under_its_stem_with_its_label(source, whole):
    for split in ("train", "val"):
        stored = samples(whole, split)
        labels = {
            path.stem: b"%04d" % label
            for label, name in enumerate(("ant", "bee", "cat"))
            for path in (source / split / name).iterdir()
        }
        assert {key: label for key, (_, label) in stored.items()} == labels


def test_stored_images_are_the_sources(source, whole):
    for split in ("train", "val"):
        originals = {path.stem: path for path in (source / split).rglob("*.jpg")}
        for key, (data, _) in samples(whole, split).items():
            with Image.open(io.BytesIO(data)) as stored, Image.open(originals[key]) as original:
                assert stored.mode == "RGB"
                assert stored.size == (SIZE, SIZE)
                difference = np.abs(np.asarray(stored, int) - np.asarray(original.convert("RGB"), int))
                assert difference.mean() < 5


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
    assert manifest["format"] == 1
    assert manifest["image"] == {"size": SIZE, "mode": "square", "quality": 95, "subsampling": "4:2:0"}
    assert [c["id"] for c in manifest["classes"]] == ["ant", "bee", "cat"]
    assert manifest["label_width"] == 4
    assert manifest["seed"] == 0
    fingerprint = read_source(source).fingerprint()
    assert manifest["source"] == {"layout": "folders", "fingerprint": fingerprint}
    assert manifest["settings"] == {
        "val_fraction": None,
        "shard_samples": 5,
        "max_megapixels": 100.0,
        "exif_rotate": False,
    }
    assert {split: sum(s["samples"] for s in found) for split, found in manifest["splits"].items()} == {
        "train": 24,
        "val": 12,
    }
    for found in manifest["splits"].values():
        for shard in found:
            data = (whole / shard["name"]).read_bytes()
            assert shard["bytes"] == len(data)
            assert shard["sha256"] == hashlib.sha256(data).hexdigest()
            with tarfile.open(whole / shard["name"]) as archive:
                assert shard["samples"] * 2 == len(archive.getnames())


def test_a_dataset_that_keeps_aspect_ratios(tmp_path):
    source = write_source(tmp_path / "source", height=60, width=97)
    manifest = make(source, tmp_path / "out", Options(size=40, keep_aspect=True))
    assert manifest.image.mode == "aspect"
    assert not (tmp_path / "out" / "mean_image.npy").exists()
    assert manifest.statistics.pixels == 24 * 40 * 65
    for data, _ in samples(tmp_path / "out", "train").values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (65, 40)


def test_a_validation_fraction_becomes_a_split(tmp_path):
    source = write_source(tmp_path / "source", train=10, val=0)
    shutil.rmtree(source / "val", ignore_errors=True)
    options = replace(OPTIONS, val_fraction=0.2, seed=4)
    manifest = make(source, tmp_path / "out", options)
    assert {split: manifest.samples(split) for split in manifest.splits} == {"train": 24, "val": 6}
    assert manifest.settings["val_fraction"] == 0.2
    train, val = (samples(tmp_path / "out", split).keys() for split in ("train", "val"))
    assert not train & val


def test_the_seed_shuffles_and_changes_nothing_else(source, whole, tmp_path):
    make(source, tmp_path / "out", replace(OPTIONS, seed=1))
    assert samples(tmp_path / "out", "train") == samples(whole, "train")
    assert list(samples(tmp_path / "out", "train")) != list(samples(whole, "train"))
    assert read_manifest(tmp_path / "out").statistics == read_manifest(whole).statistics


def test_every_byte_is_the_same_for_any_number_of_workers(tiny_source, tmp_path):
    options = Options(size=40, shard_samples=9)
    for workers in (1, 3):
        make(tiny_source, tmp_path / str(workers), options, workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    assert len(tree(tmp_path / "1")) == 2 * (10 + 4) + 3


def test_progress_counts_every_image_once(source, tmp_path):
    seen = []
    make(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
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
    with pytest.raises(
        UsageError, match=r"val-000001\.tar: missing.*prepare the dataset again in a new folder"
    ):
        make(source, out)


OTHERS = [
    (replace(OPTIONS, seed=1), r"--seed was 0, now 1"),
    (replace(OPTIONS, size=32), r"--size was 48, now 32"),
    (replace(OPTIONS, quality=90, keep_aspect=True), r"--keep-aspect was False, now True; --quality was 95"),
    (replace(OPTIONS, shard_samples=None), r"--shard-samples was 5, now None"),
    (replace(OPTIONS, max_megapixels=3), r"--max-megapixels was 100\.0, now 3"),
]


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_a_finished_job_with_other_options_is_refused(source, whole, options, message):
    before = times(whole)
    with pytest.raises(UsageError, match=message):
        make(source, whole, options)
    assert times(whole) == before


def test_a_finished_job_with_another_source_is_refused(bad_source, whole):
    with pytest.raises(UsageError, match="the source's files differ"):
        make(bad_source, whole)


@pytest.fixture
def unfinished(bad_source, tmp_path):
    """Output of a job on `bad_source` that failed because of its bad images."""
    with pytest.raises(RunError):
        make(bad_source, tmp_path / "out", max_bad=0.08)
    return tmp_path / "out"


@pytest.mark.parametrize(("options", "message"), OTHERS[:3])
def test_an_unfinished_job_with_other_options_is_refused(bad_source, unfinished, options, message):
    before = tree(unfinished)
    with pytest.raises(UsageError, match=message):
        make(bad_source, unfinished, options)
    assert tree(unfinished) == before


def test_an_unfinished_job_with_another_source_or_version_is_refused(bad_source, unfinished):
    path = unfinished / ".work" / "plan.json"
    plan = path.read_bytes()
    path.write_bytes(plan.replace(b'"architecture": "', b'"architecture": "PDP-'))
    with pytest.raises(UsageError, match="architecture was PDP-"):
        make(bad_source, unfinished)
    path.write_bytes(plan)
    place(bad_source / "train" / "ant" / "more.jpg", encoded(draw_image(77)))
    with pytest.raises(UsageError, match="the source's files differ"):
        make(bad_source, unfinished)


# Bad images


def test_too_many_bad_images_fail_the_job(bad_source, unfinished):
    with pytest.raises(RunError) as failed:
        make(bad_source, unfinished, max_bad=0.08)
    assert str(failed.value) == (
        "2 of 24 images cannot be decoded, more than --max-bad 8.00% (first: train/ant/ant_1.jpg: "
        f"Premature end of JPEG file); see {unfinished / 'report.csv'}, then raise --max-bad to leave them "
        "out, or repair them and prepare into a new folder"
    )
    assert not (unfinished / "manifest.json").exists()
    assert {row["path"] for row in read_report(unfinished) if row["action"] == "skipped"} == {
        "train/ant/ant_1.jpg",
        "train/ant/ant_2.jpg",
    }


def test_an_image_repaired_in_place_is_read_again(bad_source, unfinished):
    with pytest.raises(RunError, match="2 of 24 images"):
        make(bad_source, unfinished, max_bad=0)
    path = bad_source / "train" / "ant" / "ant_1.jpg"
    good = encoded(draw_image(5), quality=20)
    size = path.stat().st_size
    assert len(good) <= size
    path.write_bytes(good + bytes(size - len(good)))  # of the same size, so the fingerprint is unchanged
    with pytest.raises(RunError, match="1 of 24 images"):
        make(bad_source, unfinished, max_bad=0)
    assert make(bad_source, unfinished, max_bad=1 / 24).samples("train") == 23


def test_a_higher_limit_completes_the_failed_job(bad_source, unfinished, tmp_path):
    manifest = make(bad_source, unfinished, max_bad=2 / 24)
    assert manifest.samples("train") == 22
    with (unfinished / "report.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason", "action"],
            ["train/ant/ant_1.jpg", "Premature end of JPEG file", "skipped"],
            ["train/ant/ant_2.jpg", "empty file", "skipped"],
            ["train/bee/bee_9.jpg", "PNG (RGB) converted", "repaired"],
        ]
    make(bad_source, tmp_path / "again", max_bad=1)
    assert tree(unfinished) == tree(tmp_path / "again")


def test_only_what_is_missing_is_done_again(bad_source, unfinished, tmp_path):
    make(bad_source, tmp_path / "reference", max_bad=1)
    lost, *kept = (result.stem for result in sorted((unfinished / ".work" / "results").glob("train-*.json")))
    assert kept
    (unfinished / ".work" / "results" / f"{lost}.json").unlink()
    (unfinished / "train" / f"{lost}.tar").write_bytes(b"half")
    before = times(unfinished)
    make(bad_source, unfinished, max_bad=1)
    assert tree(unfinished) == tree(tmp_path / "reference")
    for name in kept:
        assert times(unfinished)[f"train/{name}.tar"] == before[f"train/{name}.tar"]


def test_a_shard_of_bad_images_only_leaves_no_file(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=1)
    for path in (source / "val" / "bee").iterdir():
        path.write_bytes(b"")
    manifest = make(source, tmp_path / "out", replace(OPTIONS, shard_samples=1), max_bad=0.5)
    assert manifest.samples("val") == 2
    assert len(list((tmp_path / "out" / "val").glob("*.tar"))) == 2
    assert len(manifest.splits["val"]) == 2


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("train/bee", "no decodable training images are left for bee;"),
        ("val", "no decodable images are left in val; see report.csv"),
    ],
)
def test_a_class_or_split_may_not_lose_all_its_images(tmp_path, lost, message):
    source = write_source(tmp_path / "source", train=3, val=1)
    for path in (source / lost).rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(RunError) as failed:
        make(source, tmp_path / "out", max_bad=1)
    assert message in str(failed.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_odd_names_reach_the_report(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=0)
    odd = 'é, "quoted"\nnew line.jpg'
    place(source / "train" / "ant" / odd, b"bad")
    make(source, tmp_path / "out", max_bad=1)
    assert read_report(tmp_path / "out") == [
        {"path": f"train/ant/{odd}", "reason": "not an image in a known format", "action": "skipped"}
    ]


def test_real_hostile_files_are_prepared_or_reported(shared_data, tmp_path):
    source = tmp_path / "source" / "train"
    shutil.copytree(shared_data / "hostile", source / "hostile")
    place(source / "good" / "good.jpg", encoded(draw_image(0)))
    manifest = make(tmp_path / "source", tmp_path / "out", Options(size=256), max_bad=1)
    report = read_report(tmp_path / "out")
    skipped = {row["path"].split("/")[-1] for row in report if row["action"] == "skipped"}
    assert skipped == {
        "bomb_65535x65535_186bytes.JPEG",
        "corrupt_huffman_1160x1068.JPEG",
        "gray_bad_exif_500x500.JPEG",
        "null_height.JPEG",
        "truncated_100x100.JPEG",
        "truncated_progressive_or_mpf_1512x2688.JPEG",
        "twelve_bit.JPEG",
        "zero_bytes.JPEG",
    }
    assert len(report) - len(skipped) == 6  # repaired, not skipped
    assert manifest.samples("train") == 23 - 8
    for data, _ in samples(tmp_path / "out", "train").values():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.mode) == ((256, 256), "RGB")


# Output folders


def test_an_output_inside_the_source_is_refused(source):
    before = tree(source)
    for out in (source, source / "out", source / "train" / "ant" / "deep"):
        with pytest.raises(UsageError, match=f"output {out} lies inside the source {source}"):
            make(source, out)
    assert tree(source) == before


def test_an_output_inside_the_source_by_a_link_is_refused(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(UsageError, match="lies inside the source"):
        make(source, tmp_path / "link" / "out")


def test_a_folder_with_other_files_is_refused_and_kept(source, tmp_path):
    place(tmp_path / "out" / "thesis.tex")
    with pytest.raises(UsageError, match=f"output {tmp_path / 'out'}: holds other files"):
        make(source, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {"thesis.tex"}


def test_a_manifest_of_another_format_is_refused_and_kept(source, tmp_path):
    place(tmp_path / "out" / "manifest.json", b'{"name": "a web app"}')
    with pytest.raises(UsageError, match="format version None"):
        make(source, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {"manifest.json"}


def test_a_file_as_output_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="it is a file"):
        make(source, place(tmp_path / "out"))


def test_an_output_below_a_file_is_a_run_error(source, tmp_path):
    place(tmp_path / "file")
    with pytest.raises(RunError, match="cannot create the folder"):
        make(source, tmp_path / "file" / "out")


def test_an_empty_folder_is_accepted(source, whole, tmp_path):
    (tmp_path / "out").mkdir()
    make(source, tmp_path / "out", workers=2)
    assert tree(tmp_path / "out") == tree(whole)


def test_finish_refuses_missing_shards(source, tmp_path):
    plan, shards = make_plan(read_source(source), OPTIONS)
    store_plan(open_store(tmp_path), plan, shards)
    with pytest.raises(RunError, match=r"0 of 8 shards are finished \(missing: train/train-000000, "):
        finish(tmp_path, max_bad=1)
    assert not (tmp_path / "manifest.json").exists()


# Kills of a real process and its workers

COMMAND = "from cli.prep import main; main()"
PATIENCE = 60  # seconds after which a wait fails


started = []


@pytest.fixture(autouse=True)
def end_what_was_started():
    """Kill the processes that a failed test left running."""
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            kill_group(process)


def start(source, out, *options, **settings):
    """Start `alexnet-prep shard` on a job with `OPTIONS`, without output, in a process group of its own."""
    words = ["shard", source, out, "--size", SIZE, "--shard-samples", 5, "--max-bad", 1, *options]
    process = python(COMMAND, *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)
    started.append(process)
    return process


def end(process):
    """Wait for a process; return its exit code and its stderr."""
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    end(process)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


def finished_results(out):
    return len(list((out / ".work" / "results").glob("[!.]*.json")))


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """A source with one image that takes seconds; all other shards are finished long before its own."""
    root = write_source(tmp_path_factory.mktemp("blocked") / "source", train=8, val=0)
    huge = Image.fromarray(np.zeros((9900, 9900, 3), np.uint8))
    place(root / "train" / "bee" / "huge.jpg", encoded(huge, "PNG", compress_level=1))
    return root


def reference(source, folder):
    make(source, folder, max_bad=1)
    return tree(folder)


def kill_and_complete(source, out, expected, kills, rng):
    """Kill the job's process group at `kills` random moments, then let it finish."""
    hit = 0
    for _ in range(kills):
        process = start(source, out, "--workers", 2)
        finished = rng.randrange(0, 8)
        wait_until(lambda p=process, n=finished: finished_results(out) >= n or p.poll() is not None)
        time.sleep(rng.random() * 0.02)
        hit += process.poll() is None
        kill_group(process)
    code, err = end(start(source, out, "--workers", 2))
    assert (code, err) == (0, "")
    assert tree(out) == expected
    return hit


def test_a_job_killed_twice_completes_to_the_same_bytes(source, whole, tmp_path):
    kill_and_complete(source, tmp_path / "out", tree(whole), 2, random.Random(1))


@pytest.mark.slow
def test_a_job_killed_many_times_completes_to_the_same_bytes(source, whole, tmp_path):
    rng, expected = random.Random(2), tree(whole)
    hit = sum(kill_and_complete(source, tmp_path / str(k), expected, 3, rng) for k in range(12))
    assert hit >= 12  # of 36 kills, enough hit a running job


@needs_proc
def test_a_killed_worker_is_a_run_error_and_the_job_can_be_completed(blocked, tmp_path):
    out = tmp_path / "out"
    process = start(blocked, out, "--workers", 2)
    wait_until(lambda: finished_results(out) == 4)  # of 5
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    code, err = end(process)
    assert code == 1
    assert err == (
        "error: a worker process died (killed, or out of memory); what was finished is kept: run the same "
        "command again, with fewer --workers if memory is short\n"
    )
    assert not (out / "manifest.json").exists()
    kept = {name: at for name, at in times(out).items() if re.fullmatch(r"train/train-\d+\.tar", name)}
    assert len(kept) == 4
    assert end(start(blocked, out)) == (0, "")
    assert kept.items() <= times(out).items()
    assert tree(out) == reference(blocked, tmp_path / "reference")


@needs_proc
def test_workers_do_not_outlive_a_killed_parent(blocked, tmp_path):
    out = tmp_path / "out"
    process = start(blocked, out, "--workers", 2)
    wait_until(lambda: finished_results(out) == 4)
    family = workers_of(process.pid)
    assert len(family) == 2
    process.kill()  # only the parent, while one worker is busy and the other idle
    end(process)
    wait_until(lambda: not any(map(is_running, family)))
    assert end(start(blocked, out)) == (0, "")
    assert tree(out) == reference(blocked, tmp_path / "reference")


def test_ctrl_c_keeps_what_is_finished(blocked, tmp_path):
    out = tmp_path / "out"
    process = start(blocked, out, "--workers", 2)
    wait_until(lambda: finished_results(out) == 4)
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert (code, err) == (130, "error: stopped; what was finished is kept\n")
    assert finished_results(out) >= 4
    assert end(start(blocked, out)) == (0, "")
    assert tree(out) == reference(blocked, tmp_path / "reference")


def test_two_jobs_at_once_are_refused(blocked, tmp_path):
    out = tmp_path / "out"
    process = start(blocked, out, "--workers", 2)
    wait_until(lambda: finished_results(out) == 4)
    before = tree(out)
    code, err = end(start(blocked, out))
    assert (code, err) == (2, f"error: another job is writing to {out}; wait for it or stop it\n")
    assert tree(out) == before
    kill_group(process)  # this releases its lock
    make(blocked, out, max_bad=1)


def test_a_lock_left_behind_is_no_lock(source, whole, tmp_path):
    out = tmp_path / "out"
    lock = place(out / ".work" / "job.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another job is writing"):
            make(source, out)
    make(source, out)
    assert tree(out) == tree(whole)


# A full disk


def whole_or_absent(out, expected):
    """Assert that every file outside `.work` is complete."""
    found = {name: digest for name, digest in tree(out).items() if not name.startswith(".work/")}
    found.pop("report.csv", None)
    assert found.items() <= expected.items()


def test_a_file_that_may_not_grow_is_one_line_and_completes_later(source, whole, tmp_path):
    out, expected = tmp_path / "out", tree(whole)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
    code, err = end(start(source, out, "--workers", 2, preexec_fn=limit))
    assert code == 1
    assert err.startswith(f"error: cannot write {out}/")
    assert err.endswith(
        "File too large; free space or choose another path, then run the same command again\n"
    )
    assert err.count("\n") == 1
    assert not (out / "manifest.json").exists()
    whole_or_absent(out, expected)
    assert ".writing-" not in str(tree(out).keys())
    assert end(start(source, out)) == (0, "")
    assert tree(out) == expected


FULL_DISK = """
mount -t tmpfs -o size=80k tmpfs "$1" || exit 99
shift
"$@"
echo "exit $?"
find disk -type f | sort
mount -o remount,size=40m disk
"$@"
echo "exit $?"
cp -r disk/out after
"""


def test_a_full_disk_is_one_line_and_completes_when_there_is_space(source, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    # The disk is mounted in a namespace of its own and disappears with the process.
    job = ["shard", source, "disk/out", "--size", SIZE, "--shard-samples", 5]
    command = [sys.executable, "-c", COMMAND, *map(str, job), "--workers", "2"]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", "disk", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode and "exit" not in done.stdout:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    first, second = done.stdout.index("exit 1\n"), done.stdout.index("exit 0\n")
    left = done.stdout[first:second]
    assert "manifest.json" not in left
    assert ".writing-" not in left
    assert done.stderr.startswith(f"error: cannot write {tmp_path}/disk/out/")
    assert "No space left on device; free space or choose another path" in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path / "after") == tree(whole)


# Files that are no images, and images that change


def test_a_pipe_among_the_images_is_left_out(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=0)
    os.mkfifo(source / "train" / "ant" / "pipe.jpg")
    assert make(source, tmp_path / "out").samples("train") == 9


def test_a_file_too_large_for_its_pixels_is_not_read(tmp_path):
    source = write_source(tmp_path / "source", train=3, val=0)
    with (source / "train" / "ant" / "huge.jpg").open("wb") as file:
        file.truncate(2**42)  # a sparse file, which needs no disk space
    assert make(source, tmp_path / "out", max_bad=0.5).samples("train") == 9
    assert read_report(tmp_path / "out") == [
        {
            "path": "train/ant/huge.jpg",
            "reason": "unreadable file: larger than 867,108,864 bytes",
            "action": "skipped",
        }
    ]


def test_a_class_that_was_lost_is_found_again_once_its_files_are_repaired(tmp_path):
    source = write_source(tmp_path / "source", train=2, val=0)
    kept = {path: path.read_bytes() for path in (source / "train" / "bee").iterdir()}
    for path, data in kept.items():
        path.write_bytes(bytes(len(data)))
    for _ in range(2):
        with pytest.raises(RunError, match="no decodable training images are left for bee"):
            make(source, tmp_path / "out", max_bad=1)
    for path, data in kept.items():
        path.write_bytes(data)
    assert make(source, tmp_path / "out", max_bad=1).samples("train") == 6


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


def test_results_of_another_plan_are_refused(source, tmp_path):
    listed = read_source(source)
    for name, options in (("one", OPTIONS), ("two", replace(OPTIONS, quality=20))):
        store_plan(open_store(tmp_path / name), *make_plan(listed, options))
        for shard in read_plan(open_store(tmp_path / name)).shards:
            run_shard(ShardJob(str(source), str(tmp_path / name), str(tmp_path / "scratch")), shard.name)
    result = ".work/results/train-000001.json"
    shutil.copy(tmp_path / "two" / result, tmp_path / "one" / result)
    with pytest.raises(RunError, match="train/train-000001 was made for another plan"):
        finish(tmp_path / "one")
    assert not (tmp_path / "one" / "manifest.json").exists()
