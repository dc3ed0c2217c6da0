import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import is_root, needs_proc, place, tree
from helpers.hub_files import write_parquet, write_tar
from hypothesis import given, strategies as st

from pipeline.errors import RunError, UsageError
from pipeline.sources import spool as module
from pipeline.sources.base import Container
from pipeline.sources.spool import needs_spool, spool, spooled_span
from pipeline.storage.local import LocalStore
from pipeline.storage.open import open_store


def container(root, name):
    return Container(name, (root / name).stat().st_size)


def some_rows(count=40, size=1000):
    rng = np.random.default_rng(count)
    return [(rng.bytes(int(rng.integers(size))), f"{k}.jpg", k % 2) for k in range(count)]


def read_back(folder, number, which, offset, size=-1):
    return LocalStore(str(folder)).read(spooled_span(folder, number, which, offset, size))


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("data/train-0.parquet", True),
        ("A.PARQUET", True),
        ("a.tar.gz", True),
        ("a.TGZ", True),
        ("a.tar", False),
        ("ILSVRC2012_img_train.tar", False),
    ],
)
def test_what_needs_spooling(name, needed):
    assert needs_spool(Container(name, 1)) is needed


def test_rows_of_parquet_files_are_read_back(tmp_path):
    rows = some_rows()
    write_parquet(tmp_path / "a.parquet", rows, row_group=7)
    which, folder = container(tmp_path, "a.parquet"), tmp_path / "some" / "spool"
    spool(LocalStore(str(tmp_path)), 3, which, folder)
    assert {path.name for path in folder.iterdir()} == {"00003.bin", "00003.npy", "00003.lock"}
    assert (folder / "00003.bin").read_bytes() == b"".join(data for data, _, _ in rows)
    for row in reversed(range(len(rows))):
        assert read_back(folder, 3, which, row) == rows[row][0]


def test_compressed_tars_are_read_back(tmp_path):
    samples = [{"__key__": f"{k}", "jpg": data, "cls": b"1"} for k, (data, _, _) in enumerate(some_rows(9))]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar.gz", samples)
    which, folder = container(tmp_path, "b.tar.gz"), tmp_path / "spool"
    spool(LocalStore(str(tmp_path)), 0, which, folder)
    content = (folder / "00000.bin").read_bytes()
    at = content.index(samples[3]["jpg"])
    assert read_back(folder, 0, which, at, len(samples[3]["jpg"])) == samples[3]["jpg"]
    with tarfile.open(folder / "00000.bin") as spooled, tarfile.open(tmp_path / "a.tar") as plain:
        assert spooled.getnames() == plain.getnames()


def test_from_a_bucket(tmp_path, s3):
    rows = some_rows()
    path = write_parquet(tmp_path / "a.parquet", rows)
    store = open_store(s3)
    store.write("x/a.parquet", path.read_bytes())
    which = Container("x/a.parquet", path.stat().st_size)
    spool(store, 0, which, tmp_path / "spool")
    assert [read_back(tmp_path / "spool", 0, which, k) for k in range(len(rows))] == [r[0] for r in rows]


IMAGES = st.lists(st.none() | st.binary(max_size=30), min_size=1, max_size=40)


@given(IMAGES, st.integers(1, 50), st.sampled_from(["zstd", "snappy", "none"]), st.booleans())
def test_any_rows_in_any_row_groups_are_read_back(tmp_path_factory, images, row_group, compression, large):
    root = tmp_path_factory.mktemp("rows")
    kind = pa.struct([("bytes", pa.large_binary() if large else pa.binary()), ("path", pa.string())])
    column = pa.array([None if d is None else {"bytes": d, "path": None} for d in images], kind)
    table = pa.table({"image": column, "label": [0] * len(images)})
    pq.write_table(table, root / "a.parquet", row_group_size=row_group, compression=compression)
    which = container(root, "a.parquet")
    spool(LocalStore(str(root)), 0, which, root)
    assert [read_back(root, 0, which, k) for k in range(len(images))] == [d or b"" for d in images]


def test_what_is_finished_is_left_alone(tmp_path):
    write_parquet(tmp_path / "a.parquet", some_rows())
    which = container(tmp_path, "a.parquet")
    folder = tmp_path / "spool"
    spool(LocalStore(str(tmp_path)), 0, which, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "a.parquet").unlink()
    spool(LocalStore(str(tmp_path)), 0, which, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("left", [[".writing-1-00000.bin"], ["00000.bin"], ["00000.npy"], ["00000.lock"]])
def test_leftovers_of_a_killed_process_are_no_finished_spool(tmp_path, left):
    rows = some_rows()
    write_parquet(tmp_path / "a.parquet", rows)
    which, folder = container(tmp_path, "a.parquet"), tmp_path / "spool"
    for name in left:
        place(folder / name, b"half")
    spool(LocalStore(str(tmp_path)), 0, which, folder)
    assert [read_back(folder, 0, which, k) for k in range(len(rows))] == [r[0] for r in rows]


def test_a_spool_made_again_is_not_read_by_its_old_table(tmp_path):
    folder = tmp_path / "spool"
    for count in (5, 30):
        rows = some_rows(count)
        write_parquet(tmp_path / "a.parquet", rows)
        which = container(tmp_path, "a.parquet")
        spool(LocalStore(str(tmp_path)), 0, which, folder)
        assert [read_back(folder, 0, which, k) for k in range(count)] == [r[0] for r in rows]
        for path in folder.iterdir():
            path.unlink()


def spool_slowly(root, which, folder):
    """Spool in a process of its own, pausing half-way until the file `go` exists."""
    rows = module._rows

    def slow(store, which):
        for number, data in enumerate(rows(store, which)):
            yield data
            if number == 20:
                place(root / f"half-{os.getpid()}")
                while not (root / "go").exists():
                    time.sleep(0.01)

    module._rows = slow
    spool(LocalStore(str(root)), 0, which, folder)


def wait_for(pattern, root, process=None):
    while not list(root.glob(pattern)):
        assert process is None or process.is_alive()
        time.sleep(0.01)


def test_a_killed_spool_leaves_nothing_that_counts(tmp_path):
    rows = some_rows()
    write_parquet(tmp_path / "a.parquet", rows)
    which, folder = container(tmp_path, "a.parquet"), tmp_path / "spool"
    process = multiprocessing.get_context("spawn").Process(
        target=spool_slowly, args=(tmp_path, which, folder)
    )
    process.start()
    wait_for("half-*", tmp_path, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(folder.glob("0*.bin"))
    assert not list(folder.glob("0*.npy"))
    spool(LocalStore(str(tmp_path)), 0, which, folder)
    assert [read_back(folder, 0, which, k) for k in range(len(rows))] == [r[0] for r in rows]


def test_a_second_process_waits_for_the_first(tmp_path):
    write_parquet(tmp_path / "a.parquet", some_rows())
    which, folder = container(tmp_path, "a.parquet"), tmp_path / "spool"
    process = multiprocessing.get_context("spawn").Process(
        target=spool_slowly, args=(tmp_path, which, folder)
    )
    process.start()
    wait_for("half-*", tmp_path, process)
    second = threading.Thread(target=spool, args=(LocalStore(str(tmp_path)), 0, which, folder))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert len(list(folder.glob(".writing-*"))) == 1
    place(tmp_path / "go")
    process.join()
    second.join()
    assert process.exitcode == 0
    written = {path.name for path in folder.iterdir()}
    assert written == {"00000.bin", "00000.npy", "00000.lock"}


def test_without_locks_the_work_is_done_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    rows = some_rows(5)
    write_parquet(tmp_path / "a.parquet", rows)
    which = container(tmp_path, "a.parquet")
    spool(LocalStore(str(tmp_path)), 0, which, tmp_path)
    assert read_back(tmp_path, 0, which, 4) == rows[4][0]


# Errors


def test_a_file_that_changed_since_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", some_rows())
    which = Container("a.parquet", path.stat().st_size + 1)
    with pytest.raises(
        UsageError, match=rf"^{path}: .* bytes, but .* when it was listed; it has changed since"
    ):
        spool(LocalStore(str(tmp_path)), 0, which, tmp_path / "spool")


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"a.parquet: it does not exist any more"):
        spool(LocalStore(str(tmp_path)), 0, Container("a.parquet", 1), tmp_path / "spool")


def test_fewer_rows_than_listed(tmp_path):
    write_parquet(tmp_path / "a.parquet", some_rows(5))
    which = container(tmp_path, "a.parquet")
    spool(LocalStore(str(tmp_path)), 0, which, tmp_path)
    with pytest.raises(UsageError, match=r"a.parquet: row 5 was listed, but the file has 5 rows"):
        spooled_span(tmp_path, 0, which, 5, -1)


@pytest.mark.parametrize("name", ["a.parquet", "a.tar.gz"])
def test_damage_is_one_line_and_leaves_no_file(tmp_path, name):
    path = place(tmp_path / name, b"PAR1 no more than this" * 9)
    with pytest.raises(
        UsageError, match=rf"^{path}: no complete (Parquet|gzip) file \(.*\); download it again$"
    ):
        spool(LocalStore(str(tmp_path)), 0, container(tmp_path, name), tmp_path / "spool")
    assert set(tree(tmp_path / "spool")) == {"00000.lock"}


def test_damaged_pages_are_one_line(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(b"data" * 500, f"{k}.jpg", 0) for k in range(40)])
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"^{path}: no complete Parquet file"):
        spool(LocalStore(str(tmp_path)), 0, container(tmp_path, "a.parquet"), tmp_path / "spool")


@pytest.mark.parametrize("name", ["a.parquet", "a.tar.gz"])
def test_a_full_disk_is_put_down_to_the_spool(tmp_path, name):
    rng = np.random.default_rng(0)
    rows = [(rng.bytes(100_000), f"{k}.jpg", 0) for k in range(10)]
    write_parquet(tmp_path / "a.parquet", rows)
    write_tar(tmp_path / "a.tar.gz", [{"__key__": p, "jpg": d} for d, p, _ in rows])
    code = f"""
        import resource, signal
        from pathlib import Path
        from pipeline.errors import RunError
        from pipeline.sources.base import Container
        from pipeline.sources.spool import spool
        from pipeline.storage.local import LocalStore

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        root = Path({str(tmp_path)!r})
        try:
            size = (root / {name!r}).stat().st_size
            spool(LocalStore(str(root)), 0, Container({name!r}, size), root / "spool")
        except RunError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    place_of = tmp_path / "spool" / "00000.bin"
    assert done.stdout == (
        f"cannot write {place_of}: File too large; free space or choose another path, then run the same "
        "command again\n"
    )
    assert set(tree(tmp_path / "spool")) == {"00000.lock"}


@pytest.mark.skipif(is_root(), reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", some_rows(5))
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o500)
    with pytest.raises(RunError, match=rf"^cannot write {folder}/00000.bin: Permission denied"):
        spool(LocalStore(str(tmp_path)), 0, container(tmp_path, "a.parquet"), folder)


def test_a_file_in_the_way_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", some_rows(5))
    place(tmp_path / "spool")
    with pytest.raises(RunError, match=r"cannot create the folder .*/spool"):
        spool(LocalStore(str(tmp_path)), 0, container(tmp_path, "a.parquet"), tmp_path / "spool")


@needs_proc
@pytest.mark.parametrize("row_group", [100, 10_000])
def test_memory_does_not_grow_with_the_file(tmp_path, row_group):
    rng = np.random.default_rng(0)
    blob = rng.bytes(50_000)
    code = f"""
        from pathlib import Path
        import pyarrow.parquet
        from pipeline.sources.base import Container
        from pipeline.sources.spool import spool
        from pipeline.storage.local import LocalStore

        def peak():
            return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

        root = Path({str(tmp_path)!r})
        before = peak()
        spool(LocalStore(str(root)), 0, Container("a.parquet", (root / "a.parquet").stat().st_size), root)
        print(peak() - before)
    """
    peaks = []
    for count in (2048, 6144):
        rows = [(blob[k:] + blob[:k], f"{k}.jpg", 0) for k in range(count)]
        write_parquet(tmp_path / "a.parquet", rows, row_group=row_group)
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
        assert (tmp_path / "00000.bin").stat().st_size == count * 50_000
        (tmp_path / "00000.npy").unlink()
    assert peaks[1] < 1.5 * peaks[0] < 450e6
