import json
import os
from functools import partial

import pytest
from helpers.folders import (
    SIZE,
    draw_image,
    encoded,
    is_root,
    python,
    refused,
    times,
    tree,
    write_source,
)
from helpers.hub_files import as_parquet
from helpers.inline import INLINE

from pipeline import Options, SourceOptions, finish, prepare, prepare_slice, read_source
from pipeline.errors import RunError
from pipeline.sharding import job
from pipeline.storage.locks import LockedError, TakenOverError, locked

OPTIONS = Options(size=SIZE, shard_samples=5)
make_slice = partial(prepare_slice, executor=INLINE)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 training and 12 validation images, which make 5 and 3 shards."""
    return write_source(tmp_path_factory.mktemp("slices") / "source")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """File tree of the output of one whole job."""
    out = tmp_path_factory.mktemp("whole")
    prepare(read_source(source), out, OPTIONS, executor=INLINE)
    return tree(out)


@pytest.mark.parametrize(("count", "order"), [(1, [0]), (3, [2, 0, 1]), (20, [*range(19, -1, -1)])])
def test_slices_in_any_order_make_the_same_dataset(source, whole, tmp_path, count, order):
    shards = [make_slice(source, tmp_path / "out", OPTIONS, k, count) for k in order]
    assert sum(shards) == 8
    assert max(shards) - min(shards) <= 1
    finish(tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_slices_at_the_same_time_make_the_same_dataset(source, whole, tmp_path):
    code = "from cli.prep import main; main()"
    words = ["shard", source, tmp_path / "out", "--shard-samples", 5, "--size", SIZE]
    running = [python(code, *words, "--task", f"{k}/2", stdout=-1, stderr=-1) for k in range(2)]
    for k, process in enumerate(running):
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert f"task {k} of 2 done, 4 shards" in out
    finish(tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def replace_by_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: folder.chmod(0o777), id="open to all"),
        pytest.param(replace_by_link, id="link"),
        pytest.param(
            lambda folder: os.chown(folder, 4321, 4321),
            id="of another user",
            marks=pytest.mark.skipif(not is_root(), reason="only root may give files away"),
        ),
    ],
)
def test_a_scratch_folder_that_others_may_have_filled_is_not_used(source, tmp_path, change):
    """Its name can be predicted, because slices find each other's spooled files by it."""
    as_parquet(source, tmp_path / "parquet")
    make = partial(make_slice, tmp_path / "parquet", tmp_path / "out", OPTIONS, scratch=tmp_path / "tmp")
    make(0, 2)
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    change(folder)
    refused(lambda: make(1, 2), str(folder), "another user", "--scratch")


def test_a_whole_job_completes_what_slices_began(source, whole, tmp_path):
    make_slice(source, tmp_path / "out", OPTIONS, 1, 2)
    before = times(tmp_path / "out")
    kept = {name: at for name, at in before.items() if name.endswith(".tar")}
    assert len(kept) == 4
    prepare(read_source(source), tmp_path / "out", OPTIONS, executor=INLINE)
    assert tree(tmp_path / "out") == whole
    assert kept.items() <= times(tmp_path / "out").items()


def test_finishing_needs_every_slice(source, whole, tmp_path):
    out = tmp_path / "out"
    make_slice(source, out, OPTIONS, 0, 2)
    refused(lambda: finish(out), "4 of 8 shards", "missing: train/train-000001, ", error=RunError)
    assert not (out / "manifest.json").exists()
    make_slice(source, out, OPTIONS, 1, 2)
    finish(out)
    assert tree(out) == whole
    before = times(out)
    finish(out)  # does nothing the second time
    assert times(out) == before
    refused(lambda: make_slice(source, out, OPTIONS, 1, 2), "is complete already")


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_finishing_nothing_is_refused(tmp_path, folder):
    refused(lambda: finish(tmp_path / folder), "no preparation was begun here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("index", "count"), [(2, 2), (5, 3), (0, 0)])
def test_numbers_out_of_range_are_refused(source, tmp_path, index, count):
    call = partial(make_slice, source, tmp_path / "out", OPTIONS, index, count)
    refused(call, f"--task {index}/{count}: ")


def test_slices_of_another_job_are_refused(source, tmp_path):
    out = tmp_path / "out"
    make_slice(source, out, OPTIONS, 0, 2)
    smaller = Options(size=32, shard_samples=5)
    refused(lambda: make_slice(source, out, smaller, 1, 2), "--size was 48, now 32")
    read_with = SourceOptions(layout="classes")
    refused(
        lambda: make_slice(source, out, OPTIONS, 1, 2, read_with=read_with), "--layout was auto, now classes"
    )
    other = write_source(tmp_path / "other", train=1, val=0)
    refused(lambda: make_slice(other, out, OPTIONS, 1, 2), f"was planned from {source}, not {other};")


def test_a_slice_runs_beside_other_slices_but_not_beside_a_whole_job_or_finish(source, tmp_path):
    out = tmp_path / "out"
    held = {"error": LockedError}
    with locked(out / ".work" / "task-0-of-2.lock", out):
        refused(lambda: make_slice(source, out, OPTIONS, 0, 2), "--take-over", **held)
        make_slice(source, out, OPTIONS, 1, 2)
        refused(lambda: finish(out), "--take-over", **held)
        refused(lambda: prepare(read_source(source), out, OPTIONS), "--take-over", **held)
    with locked(out / ".work" / "job.lock", out):
        refused(lambda: make_slice(source, out, OPTIONS, 0, 2), "--take-over", **held)
    make_slice(source, out, OPTIONS, 0, 2)
    finish(out)


@pytest.mark.parametrize("other", ["job", "slice", "finish"])
def test_a_slice_that_is_taken_over_writes_nothing_more(source, whole, tmp_path, monkeypatch, other):
    out, run_shard, left = tmp_path / "out", job.run_shard, []

    def replaced(*arguments):
        """Another command takes the folder over before the slice's second shard."""
        result = run_shard(*arguments)
        monkeypatch.setattr(job, "run_shard", run_shard)
        if other == "slice":
            make_slice(source, out, OPTIONS, 0, 2, take_over=True)
        elif other == "job":
            prepare(read_source(source), out, OPTIONS, executor=INLINE, take_over=True)
        else:
            refused(lambda: finish(out, take_over=True), "1 of 8 shards", error=RunError)
        left.append(tree(out))
        return result

    monkeypatch.setattr(job, "run_shard", lambda *arguments: (run_shard if left else replaced)(*arguments))
    refused(lambda: make_slice(source, out, OPTIONS, 0, 2), error=TakenOverError)
    assert tree(out) == left[0]
    assert (tree(out) == whole) == (other == "job")


def test_a_result_of_another_machines_libraries_is_refused(source, tmp_path):
    out = tmp_path / "out"
    make_slice(source, out, OPTIONS, 0, 1)
    path = out / ".work" / "results" / "train-000002.json"
    result = json.loads(path.read_text())
    result["versions"]["simplejpeg"] = "0.1"
    path.write_text(json.dumps(result))
    refused(lambda: finish(out), "train/train-000002 has simplejpeg 0.1 instead of ", error=RunError)
    assert not (out / "manifest.json").exists()


def test_an_image_that_changes_between_slices_is_skipped_and_reported(tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    make_slice(source, out, OPTIONS, 0, 8)
    changed = sorted((source / "val" / "bee").iterdir())[0]
    changed.write_bytes(encoded(draw_image(99), "PNG"))
    for k in range(1, 8):
        make_slice(source, out, OPTIONS, k, 8, max_bad=1)
    refused(lambda: finish(out, max_bad=0), "1 of 36 images cannot be decoded", error=RunError)
    assert finish(out, max_bad=1).samples("val") == 11  # a higher limit completes it
    _, row = (out / "report.csv").read_text().splitlines()
    assert row.startswith(f'val/bee/{changed.name},"has ')
    assert row.endswith('when it was listed",skipped')


def test_a_container_that_changed_since_is_refused(source, tmp_path):
    dataset = tmp_path / "tars"
    prepare(read_source(source), dataset, OPTIONS, executor=INLINE)
    make_slice(dataset, tmp_path / "out", OPTIONS, 0, 2)
    tar = dataset / "train" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes() + bytes(10240))
    call = partial(make_slice, dataset, tmp_path / "out", OPTIONS, 1, 2)
    refused(call, "train-000000.tar: ", "when it was listed")


def test_a_slice_with_too_many_bad_images_fails_and_can_be_submitted_again(tmp_path):
    source = write_source(tmp_path / "source")
    kept = {path: path.read_bytes() for path in sorted((source / "train" / "ant").iterdir())}
    for path, data in kept.items():
        path.write_bytes(bytes(len(data)))
    with pytest.raises(RunError, match=r"task 0 of 1 alone skipped more images than --max-bad 5\.00%"):
        make_slice(source, tmp_path / "out", OPTIONS, 0, 1, max_bad=0.05)
    for path, data in kept.items():
        path.write_bytes(data)
    make_slice(source, tmp_path / "out", OPTIONS, 0, 1, max_bad=0.05)
    assert finish(tmp_path / "out", max_bad=0).samples("train") == 24
