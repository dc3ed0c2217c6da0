import errno
import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import is_root, needs_proc, python

from pipeline.errors import RunError
from pipeline.storage.atomic import (
    atomic_write,
    make_folder,
    remove_leftovers,
    sha256_of,
    write_array,
    write_bytes,
)


def test_a_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    writing = atomic_write(path)
    writing.__enter__().write(b"new")
    with pytest.raises(KeyError, match="inside"):
        writing.gen.throw(KeyError("inside"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


@needs_proc
def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    events = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor):
        target = Path(f"/proc/self/fd/{descriptor}").resolve()
        events.append("fsync folder" if target == tmp_path else f"fsync {target.stat().st_size} bytes")
        fsync(descriptor)

    def recording_replace(*names):
        events.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_bytes(path, b"12345")
    assert events == ["fsync 5 bytes", "rename", "fsync folder"]


@pytest.mark.parametrize("name", ["missing/a.bin", "folder"])
def test_an_impossible_path_is_a_run_error_that_names_it(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=f"cannot write {tmp_path / name}: .*choose another path"):
        write_bytes(tmp_path / name, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(is_root(), reason="root may write anywhere")
def test_a_read_only_folder_is_a_run_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(RunError, match="Permission denied"):
        write_bytes(tmp_path / "a.bin", b"x")


def test_a_killed_writer_leaves_only_what_remove_leftovers_deletes(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from pipeline.storage.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    write_bytes(tmp_path / "kept", b"x")
    (tmp_path / "sub").mkdir()
    write_bytes(tmp_path / "sub" / ".writing-1-other", b"x")
    assert python(code, tmp_path / "a.bin").wait() == -signal.SIGKILL
    (left,) = {p.name for p in tmp_path.iterdir()} - {"kept", "sub"}
    assert left.startswith(".writing-")
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"kept", "sub"}
    assert (tmp_path / "sub" / ".writing-1-other").exists()


def test_what_is_whole_is_not_lost_to_a_folder_that_cannot_be_synced_or_cleaned(tmp_path, monkeypatch):
    """Some network file systems sync no folders, and deleting may fail there."""
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def stale(path, **_):
        raise OSError(errno.ESTALE, "Stale file handle", path)

    (tmp_path / ".writing-of-a-killed-process").touch()
    monkeypatch.setattr(os, "fsync", of_files_only)
    monkeypatch.setattr(os, "unlink", stale)
    remove_leftovers(tmp_path)
    write_bytes(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_an_array_reads_back(tmp_path):
    array = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    write_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (found.dtype, found.tolist()) == (array.dtype, array.tolist())


@pytest.mark.parametrize("write", ["write_bytes(path, bytes(10**5))", "write_array(path, np.zeros(10**5))"])
def test_a_full_disk_is_named_as_the_cause(tmp_path, write):
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.errors import RunError
from pipeline.storage.atomic import write_array, write_bytes
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    {write}
except RunError as error:
    print(error)
"""
    out, _ = python(code, tmp_path / "a", stdout=-1).communicate()
    assert out.startswith(f"cannot write {tmp_path}/a: File too large; free space or choose another path")
    assert list(tmp_path.iterdir()) == []


def test_make_folder(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"cannot create the folder {tmp_path}/file/c"):
        make_folder(tmp_path / "file" / "c")


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "a") == digest
