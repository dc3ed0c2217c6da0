"""The same images in every layout: the same source, the same shards, from a folder and from a bucket."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from os import killpg

import pytest
from helpers.buckets import upload
from helpers.folders import needs_proc, place, tree, workers_of
from helpers.hub_files import as_parquet, as_webdataset
from helpers.imagenet_files import (
    contents,
    in_tree,
    write_archives,
    write_folders,
    write_kaggle,
    write_mapping,
)
from helpers.inline import INLINE

from pipeline import Options, prepare, read_manifest, read_source

pytestmark = pytest.mark.usefixtures("scipy_once")

OPTIONS = Options(size=64, shard_samples=3)
WRITERS = {
    "folders": write_folders,
    "kaggle": write_kaggle,
    "archives": write_archives,
    "archives, extracted devkit": partial(write_archives, labels="extracted"),
    "archives, CSV": partial(write_archives, labels="csv"),
    "parquet": lambda root, tree: as_parquet(tree, root),
    "webdataset": lambda root, tree: as_webdataset(tree, root, per_tar=3),
    "webdataset, .tgz": lambda root, tree: as_webdataset(tree, root, suffix=".tgz"),
    "webdataset, JSON, .tar.gz": lambda root, tree: as_webdataset(tree, root, "json", suffix=".tar.gz"),
}
LAYOUTS = [name for name in WRITERS if "," not in name]


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
    for name, write in WRITERS.items():
        (root / name).mkdir()
        write(root / name, photographs)
        write_mapping(root / name, photographs)
    return {name: root / name for name in WRITERS}


@pytest.fixture(scope="module")
def reference(sources, tmp_path_factory):
    """Dataset that is made from the class folders."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare(read_source(sources["folders"]), out, OPTIONS, executor=INLINE)
    return out


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_detected_and_holds_the_photographs(sources, photographs, tmp_path, name):
    source = read_source(sources[name])
    assert source.layout == name.partition(",")[0]
    assert source.classes == read_source(sources["folders"]).classes
    assert contents(source, tmp_path) == in_tree(photographs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_shards_and_is_left_as_it_is(sources, reference, tmp_path, name):
    before = tree(sources[name])
    manifest = prepare(read_source(sources[name]), tmp_path / "out", OPTIONS, executor=INLINE)
    assert tree(sources[name]) == before
    found, expected = tree(tmp_path / "out"), tree(reference)
    for files in (found, expected):
        del files["manifest.json"]
    assert found == expected
    ours, theirs = asdict(manifest), asdict(read_manifest(reference))
    assert ours.pop("source")["layout"] == name
    theirs.pop("source")
    assert json.dumps(ours) == json.dumps(theirs)  # everything else, including the classes' names


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_bucket_holds_the_same_as_the_folder(sources, photographs, s3, tmp_path, name):
    upload(sources[name], f"{s3}/some/prefix")
    here, there = read_source(sources[name]), read_source(f"{s3}/some/prefix/")
    assert (there.layout, there.splits, there.classes) == (here.layout, here.splits, here.classes)
    assert (there.containers, there.fingerprint()) == (here.containers, here.fingerprint())
    assert there.notes == [note.replace(str(sources[name]), f"{s3}/some/prefix") for note in here.notes]
    assert contents(there, tmp_path) == in_tree(photographs)
    if name == "archives":
        named = read_source(f"{s3}/some/prefix/{here.containers[0].path}")
        assert named.fingerprint() == here.fingerprint()


@pytest.mark.parametrize("name", ["archives", "webdataset"])
def test_a_tar_may_be_named_as_the_source(sources, name):
    here = read_source(sources[name])
    for container in here.containers[:2]:
        assert read_source(sources[name] / container.path).fingerprint() == here.fingerprint()


def test_layouts_can_be_forced_and_downloaded_files_come_before_what_was_extracted(sources, tmp_path):
    both = shutil.copytree(sources["folders"], tmp_path / "both")
    shutil.copytree(sources["archives"], both, dirs_exist_ok=True)
    shutil.copytree(sources["parquet"] / "data", both / "data")
    assert read_source(both).layout == "archives"
    for layout in ("archives", "folders", "parquet"):
        assert read_source(both, layout=layout).layout == layout


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
