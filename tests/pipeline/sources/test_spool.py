import errno
import resource
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import is_root, needs_proc, overwrite, place, python, refused, times, tree
from helpers.hub_files import write_parquet, write_tar
from hypothesis import given, settings, strategies as st

from pipeline.errors import RunError
from pipeline.sources import spool as module
from pipeline.sources.base import Container
from pipeline.sources.spool import needs_spool, spool, spooled_span
from pipeline.storage.local import LocalStore


def some_rows(count=40, size=1000):
    rng = np.random.default_rng(count)
    return [(rng.bytes(int(rng.integers(size))), f"{k}.jpg", k % 2) for k in range(count)]


class Spooled:
    """A container in a folder, and where it is spooled to."""

    def __init__(self, root, name="a.parquet", rows=None, **options):
        if rows is not None:
            write_parquet(root / name, rows, **options)
        self.rows, self.path, self.folder = rows, root / name, root / "spool"
        self.store = LocalStore(str(root))
        self.container = Container(name, self.path.stat().st_size)

    def spool(self):
        spool(self.store, 0, self.container, self.folder)

    def read(self, offset, size=-1):
        span = spooled_span(self.folder, 0, self.container, offset, size)
        return LocalStore(str(self.folder)).read(span)

    def check(self):
        """Assert that each row is read back."""
        for row in reversed(range(len(self.rows))):
            assert self.read(row) == (self.rows[row][0] or b"")


@pytest.mark.parametrize(
    ("name", "needed"), [("A.PARQUET", True), ("a.tar.gz", True), ("a.TGZ", True), ("a.tar", False)]
)
def test_what_needs_spooling(name, needed):
    assert needs_spool(Container(name, 1)) is needed


def test_compressed_tars_are_read_back(tmp_path):
    samples = [{"__key__": f"{k}", "jpg": data, "cls": b"1"} for k, (data, _, _) in enumerate(some_rows(9))]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar.gz", samples)
    made = Spooled(tmp_path, "b.tar.gz")
    made.spool()
    content = (made.folder / "00000.bin").read_bytes()
    at = content.index(samples[3]["jpg"])
    assert made.read(at, len(samples[3]["jpg"])) == samples[3]["jpg"]
    with tarfile.open(made.folder / "00000.bin") as spooled, tarfile.open(tmp_path / "a.tar") as plain:
        assert spooled.getnames() == plain.getnames()


IMAGES = st.lists(st.none() | st.binary(max_size=30), min_size=1, max_size=40)


@settings(max_examples=30)
@given(IMAGES, st.integers(1, 50), st.sampled_from(["zstd", "snappy", "none"]), st.booleans())
def test_any_rows_in_any_row_groups_are_read_back(tmp_path_factory, images, row_group, compression, large):
    root = tmp_path_factory.mktemp("rows")
    kind = pa.struct([("bytes", pa.large_binary() if large else pa.binary()), ("path", pa.string())])
    column = pa.array([None if d is None else {"bytes": d, "path": None} for d in images], kind)
    table = pa.table({"image": column, "label": [0] * len(images)})
    pq.write_table(table, root / "a.parquet", row_group_size=row_group, compression=compression)
    made = Spooled(root)
    made.rows = [(image, None, None) for image in images]
    made.spool()
    made.check()


def test_what_is_finished_is_left_alone(tmp_path):
    made = Spooled(tmp_path, rows=some_rows())
    made.spool()
    before = times(made.folder)
    made.path.unlink()
    made.spool()
    assert times(made.folder) == before


@pytest.mark.parametrize("left", [".writing-1-00000.bin", "00000.bin", "00000.starts", "00000.lock"])
def test_leftovers_of_a_killed_process_are_no_finished_spool(tmp_path, left):
    made = Spooled(tmp_path, rows=some_rows())
    place(made.folder / left, b"half")
    made.spool()
    made.check()


@pytest.mark.parametrize("kind", ["parquet", "tar.gz"])
def test_a_spooled_file_that_lost_its_end_is_made_again(tmp_path, kind):
    write_tar(tmp_path / "a.tar.gz", [{"__key__": "0", "jpg": bytes(5000), "cls": b"1"}])
    made = Spooled(tmp_path, f"a.{kind}", rows=some_rows() if kind == "parquet" else None)
    made.spool()
    whole = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    for name, data in whole.items():
        if data:
            (made.folder / name).write_bytes(data[:-8])
            made.spool()
            assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == whole


@needs_proc
def test_no_descriptor_is_kept_for_any_of_the_containers(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        root = place(tmp_path / str(number) / "x").parent
        made = Spooled(root, rows=some_rows(5))
        made.spool()
        made.check()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_spool_made_again_is_not_read_by_its_old_table(tmp_path):
    for count in (5, 30):
        made = Spooled(tmp_path, rows=some_rows(count))
        made.spool()
        made.check()
        shutil.rmtree(made.folder)


def pausing(made):
    """`_rows` of the spool, pausing half-way until the file `go` exists."""
    rows, root = module._rows, made.path.parent

    def slow(store, which):
        for number, data in enumerate(rows(store, which)):
            yield data
            if number == 20:
                place(root / "half")
                wait_for(root / "go")

    return slow


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


# A program that is completed by what it does with `make`.
PROGRAM = """
import os, signal, sys
from itertools import islice
from pathlib import Path
import pyarrow.parquet
from pipeline.sources import spool as module
from pipeline.sources.base import Container
from pipeline.storage.local import LocalStore

def make():
    root = Path(sys.argv[1])
    container = Container("a.parquet", (root / "a.parquet").stat().st_size)
    module.spool(LocalStore(str(root)), 0, container, root / "spool")
"""
DYING = """
rows = module._rows

def dying(store, which):
    yield from islice(rows(store, which), 20)
    os.kill(os.getpid(), signal.SIGKILL)

module._rows = dying
make()
"""


def test_a_killed_spool_leaves_nothing_that_counts(tmp_path):
    made = Spooled(tmp_path, rows=some_rows())
    assert python(PROGRAM + DYING, tmp_path).wait() == -signal.SIGKILL
    assert not {"00000.bin", "00000.starts"} & set(tree(made.folder))
    made.spool()
    made.check()


def test_a_second_job_waits_for_the_first(tmp_path, monkeypatch):
    made = Spooled(tmp_path, rows=some_rows())
    monkeypatch.setattr(module, "_rows", pausing(made))
    first, second = (threading.Thread(target=made.spool) for _ in range(2))
    first.start()
    wait_for(tmp_path / "half")
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert len(list(made.folder.glob(".writing-*"))) == 1
    place(tmp_path / "go")
    for thread in (first, second):
        thread.join()
    assert set(tree(made.folder)) == {"00000.bin", "00000.starts", "00000.lock"}


def test_without_locks_the_work_is_done_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    made = Spooled(tmp_path, rows=some_rows(5))
    made.spool()
    made.check()


# Errors


def test_a_file_that_changed_or_is_gone_is_refused(tmp_path):
    made = Spooled(tmp_path, rows=some_rows(5))
    made.path.write_bytes(made.path.read_bytes() + b"more")
    refused(made.spool, f"{made.path}: ", "it has changed since")
    made.path.unlink()
    refused(made.spool, "a.parquet: it does not exist any more")


def test_fewer_rows_than_listed(tmp_path):
    made = Spooled(tmp_path, rows=some_rows(5))
    made.spool()
    refused(lambda: made.read(5), "a.parquet: row 5 was listed, but the file has 5 rows")


@pytest.mark.parametrize("name", ["a.parquet", "a.tar.gz"])
def test_damage_is_one_line_and_leaves_no_file(tmp_path, name):
    path = place(tmp_path / name, b"PAR1 no more than this" * 9)
    refused(Spooled(tmp_path, name).spool, f"{path}: no complete ", "; download it again")
    assert set(tree(tmp_path / "spool")) == {"00000.lock"}


def test_damaged_pages_are_one_line(tmp_path):
    made = Spooled(tmp_path, rows=[(b"data" * 500, f"{k}.jpg", 0) for k in range(40)])
    overwrite(made.path, 4, b"\xff" * 56)
    refused(made.spool, f"{made.path}: no complete Parquet file")


@pytest.mark.parametrize("name", ["a.parquet", "a.tar.gz"])
def test_a_full_disk_is_put_down_to_the_spool(tmp_path, name):
    rng = np.random.default_rng(0)
    rows = [(rng.bytes(100_000), f"{k}.jpg", 0) for k in range(10)]
    write_tar(tmp_path / "a.tar.gz", [{"__key__": p, "jpg": d} for d, p, _ in rows])
    made = Spooled(tmp_path, name, rows=rows if name == "a.parquet" else None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # Python ignores SIGXFSZ
    try:
        refused(made.spool, f"{made.folder / '00000.bin'}: File too large", error=RunError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(tree(made.folder)) == {"00000.lock"}


@pytest.mark.skipif(is_root(), reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    made = Spooled(tmp_path, rows=some_rows(5))
    made.folder.mkdir(mode=0o500)
    refused(made.spool, f"cannot write {made.folder}/00000.bin: Permission denied", error=RunError)


def test_a_file_in_the_way_is_named(tmp_path):
    made = Spooled(tmp_path, rows=some_rows(5))
    place(made.folder)
    refused(made.spool, "cannot create the folder ", "/spool", error=RunError)


@needs_proc
def test_memory_does_not_grow_with_the_file(tmp_path):
    """100 MB in one row group are spooled with some 60 MB of memory, as many as a fifth of them needs."""
    blob, size = np.random.default_rng(0).bytes(20_000), 10_000
    rows = [(blob[k : k + size], f"{k}.jpg", 0) for k in range(size)]
    write_parquet(tmp_path / "a.parquet", rows, row_group=size)
    code = """
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak()
make()
print(peak() - before)
"""
    out, _ = python(PROGRAM + code, tmp_path, stdout=-1).communicate()
    assert (tmp_path / "spool" / "00000.bin").stat().st_size == size * size
    assert int(out) * 1024 < 85e6
