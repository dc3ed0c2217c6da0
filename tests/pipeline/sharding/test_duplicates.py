"""Images with the same bytes: counted, reported, and left out of the training split on request."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
from helpers.folders import SIZE, place, refused, samples, tree, write_source
from helpers.hub_files import as_parquet
from helpers.inline import INLINE, InlineExecutor
from helpers.source_layouts import zip_bytes

from pipeline import LocalExecutor, Options, finish, prepare, prepare_slice, read_report, read_source
from pipeline.dataset.manifest import Duplicates
from pipeline.errors import RunError
from pipeline.sharding import task

OPTIONS = Options(size=SIZE, shard_samples=5)
DROPPING = replace(OPTIONS, drop_duplicates=True)
# Copy → the file that it is a copy of. damaged.jpg is no image.
COPIES = {
    "train/ant/twin.jpg": "val/ant/ant_24.jpg",
    "train/ant/stray.jpg": "val/cat/cat_32.jpg",
    "train/bee/lost.jpg": "train/cat/cat_16.jpg",
    "train/cat/same.jpg": "train/cat/cat_17.jpg",
    "train/cat/broken.jpg": "val/cat/damaged.jpg",
}
DROPPED = {copy: of for copy, of in COPIES.items() if of.startswith("val")}
NO_IMAGE = "not an image in a known format"


def row(path, reason, action):
    return {"path": path, "reason": reason, "action": action}


TWO_LABELS = row(
    "train/bee/lost.jpg", "labeled bee here and, with the same bytes, cat as train/cat/cat_16.jpg", "kept"
)
BAD = row("val/cat/damaged.jpg", NO_IMAGE, "skipped")
REPORTED = [
    row(
        "train/ant/stray.jpg", "labeled ant here and, with the same bytes, cat as val/cat/cat_32.jpg", "kept"
    ),
    TWO_LABELS,
    row("train/cat/broken.jpg", NO_IMAGE, "skipped"),
    row("val/ant/ant_24.jpg", "a val image with the bytes of the training image train/ant/twin.jpg", "kept"),
    row("val/cat/cat_32.jpg", "a val image with the bytes of the training image train/ant/stray.jpg", "kept"),
    BAD,
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 training and 12 validation images of three classes, the copies, and two files that are no images."""
    root = write_source(tmp_path_factory.mktemp("duplicates") / "source")
    place(root / "val" / "cat" / "damaged.jpg")
    for copy, of in COPIES.items():
        shutil.copy(root / of, root / copy)
    return root


make = partial(prepare, executor=INLINE, max_bad=1)
make_slice = partial(prepare_slice, executor=INLINE, max_bad=1)


@pytest.fixture(scope="module")
def dropped(source, tmp_path_factory):
    """Dataset without the copies of validation images, made by one job. Read-only."""
    out = tmp_path_factory.mktemp("dropped") / "out"
    make(read_source(source), out, DROPPING)
    return out


def test_copies_are_counted_and_reported(source, tmp_path):
    manifest = make(read_source(source), tmp_path, OPTIONS)
    assert manifest.duplicates == Duplicates(in_train={"val": 2}, two_labels=2)
    assert read_report(tmp_path) == REPORTED
    assert manifest.samples("train") == 24 + len(COPIES) - 1


def test_training_images_that_are_validation_images_too_are_left_out(source, dropped, tmp_path):
    without = shutil.copytree(source, tmp_path / "without")
    for copy in DROPPED:
        (without / copy).unlink()
    expected = make(read_source(without), tmp_path / "out", OPTIONS)
    manifest = make(read_source(source), dropped, DROPPING)  # complete already
    assert manifest.duplicates == Duplicates(in_train={"val": 0}, two_labels=1, dropped=len(DROPPED))
    assert manifest.statistics == expected.statistics
    assert manifest.settings == expected.settings | {"drop_duplicates": True}
    for split in ("train", "val"):
        assert samples(dropped, split) == samples(tmp_path / "out", split)
    assert not (dropped / ".work").exists()
    rows = [row(copy, f"the same bytes as {of}", "left out") for copy, of in DROPPED.items()]
    assert read_report(dropped) == sorted([*rows, TWO_LABELS, BAD], key=lambda row: row["path"])
    refused(lambda: make(read_source(source), dropped, OPTIONS), "--drop-duplicates was True, now False")


def as_zip(root, out):
    members = [(path.relative_to(root).as_posix(), path.read_bytes()) for path in sorted(root.rglob("*.jpg"))]
    return place(out / "all.zip", zip_bytes(members)).parent


@pytest.mark.parametrize("layout", [as_zip, partial(as_parquet, name=lambda path, _: path.name)])
def test_sources_that_are_spooled_give_the_same(source, dropped, tmp_path, layout):
    manifest = make(read_source(layout(source, tmp_path / "source")), tmp_path / "out", DROPPING)
    assert manifest.duplicates == Duplicates(in_train={"val": 0}, two_labels=1, dropped=len(DROPPED))
    for split in ("train", "val"):
        assert samples(tmp_path / "out", split) == samples(dropped, split)


def test_workers_slices_and_restarts_drop_the_same(source, dropped, tmp_path):
    seen = []
    prepare(
        read_source(source),
        tmp_path / "workers",
        DROPPING,
        executor=LocalExecutor(2),
        max_bad=1,
        on_progress=lambda *done: seen.append(done),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (42 + 13, 42 + 13)  # the validation images are read twice
    assert tree(tmp_path / "workers") == tree(dropped)
    out = tmp_path / "slices"
    make_slice(source, out, DROPPING, 2, 3)
    refused(lambda: make_slice(source, out, OPTIONS, 1, 3), "--drop-duplicates was True, now False")
    for name in ("held_out/val-000001.digests", "results/train-000002.json"):
        (out / ".work" / name).unlink()
    for index in range(3):
        make_slice(source, out, DROPPING, index, 3)
    finish(out, max_bad=1)
    assert tree(out) == tree(dropped)


@pytest.mark.parametrize("sliced", [False, True])
def test_a_validation_image_that_was_unreadable_at_first_is_compared_when_it_is_read(
    source, dropped, tmp_path, monkeypatch, sliced
):
    """Whatever was made before it could be read is made again, and never merged."""
    listed, out, victim = read_source(source), tmp_path / "out", source / "val" / "ant" / "ant_24.jpg"
    hidden = victim.with_name("hidden")

    class Flaky(InlineExecutor):
        """The file is missing while files are hashed."""

        def run(self, work, *arguments):
            if work.func is not task.run_hash:
                return super().run(work, *arguments)
            victim.rename(hidden)
            try:
                return list(super().run(work, *arguments))
            finally:
                hidden.rename(victim)

    if sliced:
        make_slice(source, out, DROPPING, 0, 2, executor=Flaky())
        make_slice(source, out, DROPPING, 1, 2)
        refused(lambda: finish(out, max_bad=1), "submit the tasks that make them again", error=RunError)
        make_slice(source, out, DROPPING, 0, 2)
        finish(out, max_bad=1)
    else:
        call = partial(make, listed, out, DROPPING, executor=Flaky())
        refused(call, "unreadable when --drop-duplicates hashed them", error=RunError)
        make(listed, out, DROPPING)
    assert tree(out) == tree(dropped)


def test_a_class_that_is_in_val_altogether_is_refused(tmp_path):
    root = write_source(tmp_path / "source", train=2, val=2)
    for copy, of in zip(sorted(root.glob("train/bee/*")), sorted(root.glob("val/bee/*")), strict=True):
        shutil.copy(of, copy)
    call = partial(make, read_source(root), tmp_path / "out", DROPPING)
    refused(call, "training images are left for bee", "--drop-duplicates", error=RunError)
