"""The same images in every layout: the same source, the same shards, from a folder and from a bucket."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from os import killpg

import pytest
from helpers.folders import needs_proc, place, tree, workers_of
from helpers.inline import INLINE
from helpers.source_layouts import WRITERS, write_layout

from pipeline import Options, prepare, read_manifest, read_source

pytestmark = pytest.mark.usefixtures("scipy_once")

OPTIONS = Options(size=64, shard_samples=3)
LAYOUT_OF = {
    name: "parquet" if name == "parquet" else "webdataset"
    for name in WRITERS
    if name.startswith(("parquet", "webdataset", "img2dataset"))
}


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory):
    """Real ImageNet files, {train,val}/WNID/*.JPEG: of four classes two training and one validation image."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 2), ("val", 1)):
        for folder in sorted((shared_data / "imagenet-sample" / split).iterdir())[:4]:
            for path in sorted(folder.iterdir())[:count]:
                place(root / split / folder.name / path.name, path.read_bytes())
    return root


@pytest.fixture(scope="module")
def sources(photographs, tmp_path_factory):
    """Layout → a source with this layout, made of the photographs with their real names. Read-only."""
    root = tmp_path_factory.mktemp("sources")
    return {name: write_layout(name, root / name, photographs) for name in WRITERS}


@pytest.fixture(scope="module")
def reference(sources, tmp_path_factory):
    """Dataset that is made from the class folders."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare(read_source(sources["folders"]), out, OPTIONS, executor=INLINE)
    return out


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_gives_the_same_shards_and_is_left_as_it_is(sources, reference, tmp_path, name):
    before = tree(sources[name])
    source = read_source(sources[name])
    manifest = prepare(source, tmp_path / "out", OPTIONS, executor=INLINE)
    assert tree(sources[name]) == before
    found, expected = tree(tmp_path / "out"), tree(reference)
    for files in (found, expected):
        del files["manifest.json"], files["report.csv"]  # which name the source's files
    assert found == expected
    ours, theirs = asdict(manifest), asdict(read_manifest(reference))
    assert ours.pop("source")["layout"] == LAYOUT_OF.get(name, "images")
    theirs.pop("source")
    assert json.dumps(ours) == json.dumps(theirs)  # everything else, including the classes' names


def start(source, out):
    words = ["shard", source, out, "--size", 64, "--shard-samples", 1, "--workers", 2]
    command = [sys.executable, "-c", "from cli.prep import main; main()", *map(str, words)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@needs_proc
@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(sources, tmp_path):
    """Of Parquet files, which are spooled. A worker is killed, then the parent, then the whole group."""
    options = Options(size=64, shard_samples=1)
    prepare(read_source(sources["parquet"]), tmp_path / "whole", options, executor=INLINE)
    expected = tree(tmp_path / "whole")
    out = tmp_path / "out"
    for finished, victim in enumerate(("worker", "parent", "group"), 1):
        process = start(sources["parquet"], out)
        while process.poll() is None and len(list(out.glob(".work/results/[!.]*.json"))) < finished:
            time.sleep(0.01)
        if victim == "group":
            killpg(process.pid, signal.SIGKILL)
        else:
            pid = workers_of(process.pid)[0] if victim == "worker" else process.pid
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
        assert process.wait(timeout=60) != 0
        for path in out.glob("*/[!.]*.tar"):  # a tar under its final name is complete
            assert tree(path.parent)[path.name] == expected[path.relative_to(out).as_posix()]
    prepare(read_source(sources["parquet"]), out, options, executor=INLINE)
    assert tree(out) == expected
