"""The same images in every layout give the same shards, byte for byte."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from helpers.folders import needs_proc, tree, workers_of
from helpers.hub_files import as_parquet, as_webdataset
from helpers.imagenet_files import write_archives, write_folders, write_kaggle, write_mapping

from pipeline import LocalExecutor, Options, prepare, read_manifest, read_source
from pipeline.storage.atomic import sha256_of

OPTIONS = Options(size=64, shard_samples=40)
LAYOUTS = ["folders", "kaggle", "archives", "archives, labels by CSV", "parquet", "webdataset"]


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory):
    """Real ImageNet files, {train,val}/WNID/*.JPEG: 9 training and 4 validation images of each class."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 9), ("val", 4)):
        for folder in sorted((shared_data / "imagenet-sample" / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, root / split / folder.name)
    return root


@pytest.fixture(scope="module")
def sources(photographs, tmp_path_factory):
    """Layout → a source with this layout, made of the photographs with their real names."""
    root = tmp_path_factory.mktemp("sources")
    for name in LAYOUTS:
        (root / name).mkdir()
    write_folders(root / "folders", photographs)
    write_kaggle(root / "kaggle", photographs)
    write_archives(root / "archives", photographs)
    write_archives(root / "archives, labels by CSV", photographs, labels="csv")
    as_parquet(photographs, root / "parquet")
    as_webdataset(photographs, root / "webdataset")
    for name in ("archives, labels by CSV", "parquet", "webdataset"):
        write_mapping(root / name, photographs)
    return {name: root / name for name in LAYOUTS}


@pytest.fixture(scope="module")
def reference(sources, tmp_path_factory):
    """Dataset that is made from the class folders."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare(read_source(sources["folders"]), out, OPTIONS)
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_detected_and_gives_the_same_bytes(sources, reference, tmp_path, name):
    source = read_source(sources[name])
    assert source.layout == name.partition(",")[0]
    out = tmp_path / "out"
    manifest = prepare(source, out, OPTIONS, executor=LocalExecutor(2))
    expected = tree(reference)
    assert len(expected) == 2 * (3 + 1) + 3
    found = tree(out)
    assert found.pop("manifest.json") == expected.pop("manifest.json") or name != "folders"
    assert found == expected
    ours, theirs = asdict(manifest), asdict(read_manifest(reference))
    assert ours.pop("source")["layout"] == source.layout
    theirs.pop("source")
    assert json.dumps(ours) == json.dumps(theirs)  # everything else, including the classes' names


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_written_beside_a_source(sources, tmp_path, name):
    before = tree(sources[name])
    prepare(read_source(sources[name]), tmp_path / "out", OPTIONS)
    assert tree(sources[name]) == before


def test_layouts_can_be_forced(sources, tmp_path):
    both = shutil.copytree(sources["folders"], tmp_path / "both")
    shutil.copytree(sources["parquet"] / "data", both / "data")
    for layout in ("folders", "parquet"):
        assert read_source(both, layout=layout).layout == layout


# Thirty jobs that are killed


def job(source, out, workers=2):
    words = ["shard", source, out, "--size", 64, "--shard-samples", 8, "--workers", workers]
    code = "from cli.prep import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_one(process, victim):
    """Kill the parent, a worker, or the whole process group; return whether the victim existed."""
    with contextlib.suppress(ProcessLookupError, IndexError):
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "parent":
            process.kill()
        else:
            os.kill(random.choice(workers_of(process.pid)), signal.SIGKILL)
        return True
    return False


def wait_for_results(process, out, count):
    """Wait until `count` shards are finished or the job has ended."""
    results = out / ".work" / "results"
    while process.poll() is None and len(list(results.glob("[!.]*.json"))) < count:
        time.sleep(0.002)


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["archives", "parquet", "folders"])
def test_thirty_jobs_killed_at_random_moments_end_as_one_that_was_not(sources, tmp_path, name):
    """Ten jobs for each layout; each is killed three times (parent, worker or group), then completed."""
    rng = random.Random(name)
    assert job(sources[name], tmp_path / "whole").wait(timeout=300) == 0
    expected = tree(tmp_path / "whole")
    shards = sum(file.endswith(".tar") for file in expected)
    killed = 0
    for number in range(10):
        out = tmp_path / str(number)
        for _ in range(3):
            process = job(sources[name], out)
            wait_for_results(process, out, rng.randrange(shards))
            time.sleep(rng.choice([0, rng.random() * 0.02, rng.random() * 2]))
            victim = rng.choice(["parent", "worker", "group"])
            killed += process.poll() is None and kill_one(process, victim)
            process.wait(timeout=60)
            for path in out.rglob("*.tar"):  # a tar under its final name is complete
                if not path.name.startswith("."):
                    assert sha256_of(path) == expected[path.relative_to(out).as_posix()]
        assert job(sources[name], out).wait(timeout=300) == 0
        assert tree(out) == expected
        shutil.rmtree(out)
    assert killed >= 10  # of 30 kills, enough hit a running job
