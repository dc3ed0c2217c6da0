"""Preparation from and to buckets, against a local S3 server."""

import json
import subprocess
import sys

import pytest
from helpers.buckets import upload
from helpers.folders import SIZE, samples, tree, write_source

from pipeline import (
    LocalExecutor,
    Options,
    finish,
    prepare,
    prepare_slice,
    read_manifest,
    read_report,
    read_source,
)
from pipeline.errors import RunError, UsageError
from pipeline.storage.open import open_store

OPTIONS = Options(size=SIZE, shard_samples=9)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = write_source(tmp_path_factory.mktemp("remote") / "source")
    (root / "train" / "ant" / "ant_0.jpg").write_bytes(b"bad")
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Checksums of the dataset that a local job makes of the source."""
    out = tmp_path_factory.mktemp("whole")
    prepare(read_source(source), out, OPTIONS, max_bad=1)
    return tree(out)


def download(url, folder):
    store = open_store(url)
    for file in store.walk()[0]:
        with store.as_local_path(file.path) as path:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tree(folder)


def test_a_bucket_gets_the_same_bytes_and_the_disk_is_freed(source, whole, s3, tmp_path):
    out, scratch = f"{s3}/sets/one", tmp_path / "scratch"
    manifest = prepare(
        read_source(source), out, OPTIONS, executor=LocalExecutor(2), max_bad=1, scratch=scratch
    )
    assert download(out, tmp_path / "back") == whole
    assert read_manifest(out) == manifest
    assert [row["path"] for row in read_report(out)] == ["train/ant/ant_0.jpg"]
    assert tree(scratch) == {}
    assert open_store(out).names() == {"manifest.json", "mean_image.npy", "report.csv", "train", "val"}


def test_a_source_in_a_bucket_gives_the_same_bytes(source, whole, s3, tmp_path):
    upload(source, f"{s3}/images")
    prepare(read_source(f"{s3}/images"), tmp_path / "out", OPTIONS, max_bad=1)
    found = tree(tmp_path / "out")
    assert {n: d for n, d in found.items() if n != "manifest.json"} == {
        n: d for n, d in whole.items() if n != "manifest.json"
    }


def test_what_is_in_the_bucket_is_not_done_again(source, whole, s3, tmp_path):
    out = f"{s3}/out"
    prepare_slice(source, out, OPTIONS, 0, 2, max_bad=1)
    with pytest.raises(RunError, match="of 5 shards are finished"):
        finish(out, max_bad=1)
    store = open_store(out)
    before = {f.path: store._fs.info(f"{out}/{f.path}")["LastModified"] for f in store.walk()[0]}
    prepare(read_source(source), out, OPTIONS, max_bad=1)
    after = {f.path: store._fs.info(f"{out}/{f.path}")["LastModified"] for f in store.walk()[0]}
    tars = {name for name in before if name.endswith(".tar")}
    assert tars
    assert {name: before[name] for name in tars} == {name: after[name] for name in tars}
    assert download(out, tmp_path / "back") == whole
    prepare(read_source(source), out, OPTIONS, max_bad=1)  # complete already: does nothing
    with pytest.raises(UsageError, match="--size was 48, now 32"):
        prepare(read_source(source), out, Options(size=32), max_bad=1)


def test_other_peoples_objects_are_kept(source, s3):
    open_store(f"{s3}/out").write("thesis.tex", b"x")
    with pytest.raises(UsageError, match="holds other files"):
        prepare(read_source(source), f"{s3}/out", OPTIONS)
    assert open_store(f"{s3}/out").names() == {"thesis.tex"}


def test_an_output_inside_the_source_is_refused(source, s3):
    upload(source / "train" / "ant", f"{s3}/images/ant")
    upload(source / "train" / "bee", f"{s3}/images/bee")
    with pytest.raises(UsageError, match="lies inside the source"):
        prepare(read_source(f"{s3}/images"), f"{s3}/images/out", OPTIONS)


def command(*arguments):
    code = "from cli.prep import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_commands_take_buckets(source, s3):
    out = f"{s3}/out"
    done = command("shard", source, out, "--size", SIZE, "--max-bad", 1, "--workers", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"see {out}/report.csv" in done.stdout
    done = command("verify", out, "--workers", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no fault in 35 images" in done.stdout
    done = command("info", out, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["samples"] == {"train": 23, "val": 12}


def test_a_bucket_that_is_not_there_is_one_line(source, s3):
    done = command("shard", source, "s3://no-such-bucket-anywhere/out", "--size", SIZE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write s3://no-such-bucket-anywhere/out/.work/")
    done = command("shard", "s3://no-such-bucket-anywhere/in", f"{s3}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: source s3://no-such-bucket-anywhere/in: it does not exist")
    assert done.stderr.count("\n") == 1


def test_a_tar_in_a_bucket_is_read_in_place(source, s3, tmp_path, whole):
    dataset = tmp_path / "dataset"
    prepare(read_source(source), dataset, OPTIONS, max_bad=1)
    upload(dataset, f"{s3}/tars")
    prepare(read_source(f"{s3}/tars", layout="webdataset"), tmp_path / "out", OPTIONS)
    assert samples(tmp_path / "out", "val").keys() == samples(dataset, "val").keys()


def test_a_job_that_runs_twice_at_once_ends_twice_with_the_same_dataset(source, whole, s3, tmp_path):
    code = "from cli.prep import main; main()"
    arguments = ["shard", source, f"{s3}/out", "--size", SIZE, "--shard-samples", 9, "--max-bad", 1]
    words = [*map(str, arguments), "--workers", "1", "--scratch", tmp_path / "s"]
    command = [sys.executable, "-c", code, *words]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [job.communicate()[1] for job in jobs]
    assert [(job.returncode, err) for job, err in zip(jobs, errors, strict=True)] == [(0, ""), (0, "")]
    assert download(f"{s3}/out", tmp_path / "back") == whole
    assert tree(tmp_path / "s") == {}
