"""Preparation from and to buckets, against a local S3 server."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.buckets import upload
from helpers.folders import SIZE, python, refused, tree, write_source
from helpers.inline import INLINE

from cli.prep import main
from pipeline import Options, finish, prepare, prepare_slice, read_report, read_source
from pipeline.errors import RunError
from pipeline.storage.open import open_store

OPTIONS = Options(size=SIZE, shard_samples=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight training images in three shards, one of which is bad, and two validation images in one."""
    root = write_source(tmp_path_factory.mktemp("remote") / "source", 4, 1, ["ant", "bee"])
    (root / "train" / "ant" / "ant_0.jpg").write_bytes(b"bad")
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Checksums of the dataset that a local job makes of the source."""
    out = tmp_path_factory.mktemp("whole")
    prepare(read_source(source), out, OPTIONS, executor=INLINE, max_bad=1)
    return tree(out)


def download(url, folder):
    store = open_store(url)
    for file in store.walk()[0]:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.copy_to(file.path, target)
    return tree(folder)


def test_what_is_in_the_bucket_is_not_done_again(source, whole, s3, tmp_path):
    out, listed = f"{s3}/out", read_source(source)
    prepare_slice(source, out, OPTIONS, 0, 2, executor=INLINE, max_bad=1)
    refused(lambda: finish(out, max_bad=1), "of 4 shards are finished", error=RunError)
    store = open_store(out)
    before = {f.path: store._fs.info(f"{out}/{f.path}")["LastModified"] for f in store.walk()[0]}
    prepare(listed, out, OPTIONS, executor=INLINE, max_bad=1)
    tars = [name for name in before if name.endswith(".tar")]
    assert tars
    assert all(store._fs.info(f"{out}/{name}")["LastModified"] == before[name] for name in tars)
    assert download(out, tmp_path / "back") == whole
    prepare(listed, out, OPTIONS, executor=INLINE, max_bad=1)  # complete already: does nothing
    refused(lambda: prepare(listed, out, Options(size=32), max_bad=1), "--size was 48, now 32")


def test_an_output_among_other_objects_is_refused(source, s3):
    upload(source / "train", f"{s3}/images")
    for out, message in (("", "holds other files"), ("/images", "it is the source")):
        refused(lambda out=out: prepare(read_source(f"{s3}/images"), s3 + out, OPTIONS), message)
    assert open_store(s3).names() == {"images"}


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_commands_take_buckets_give_the_same_bytes_and_free_the_disk(
    source, whole, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.LocalExecutor", lambda workers: INLINE, raising=False)
    images, out, scratch = f"{s3}/images", f"{s3}/sets/one", tmp_path / "scratch"
    upload(source, images)
    words = ["--size", SIZE, "--shard-samples", 3, "--max-bad", 1, "--scratch", scratch]
    done = command("shard", images, out, *words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"{out}/report.csv" in done.stdout
    assert download(out, tmp_path / "back") == whole
    assert tree(scratch) == {}
    assert [row["path"] for row in read_report(out)] == ["train/ant/ant_0.jpg"]
    done = command("verify", out)
    assert (done.exit_code, done.stderr) == (0, "")
    done = command("info", out, "--json")
    assert json.loads(done.stdout)["samples"] == {"train": 7, "val": 2}


JOB = """
import sys
from pathlib import Path
from helpers.inline import INLINE
from pipeline import Options, prepare, read_source
source, out, scratch = sys.argv[1:]
options = Options(size=48, shard_samples=3)
prepare(read_source(source), out, options, executor=INLINE, max_bad=1, scratch=Path(scratch))
"""


def test_a_job_that_runs_twice_at_once_ends_twice_with_the_same_dataset(
    source, whole, s3, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    words = [source, f"{s3}/out", tmp_path / "s"]
    jobs = [python(JOB, *words, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [job.communicate()[1] for job in jobs]
    assert [(job.returncode, err) for job, err in zip(jobs, errors, strict=True)] == [(0, ""), (0, "")]
    assert download(f"{s3}/out", tmp_path / "back") == whole
    assert tree(tmp_path / "s") == {}
