"""Locks of folders: who gets one, when it is dead, who takes it over, and what its holder notices."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import UsageError
from pipeline.storage import holder
from pipeline.storage.locks import Lock, LockedError, TakenOverError, is_held, locked

LONG = 1000.0  # seconds after which a lock of an unseen process is dead


def leave_lock(path, age=0.0, **changes):
    """Write a lock file of this process, changed by `changes`, that was renewed `age` seconds ago."""
    record = vars(holder.new_holder()) | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    os.utime(path, (time.time() - age, time.time() - age))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "job.lock"


@pytest.fixture
def gone():
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_by_one_and_leaves_nothing(path):
    with locked(path, path.parent):
        assert is_held(path)
        with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* \(since 2.*--take-over"):
            Lock(path, path.parent).acquire()
    assert not is_held(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "age", "free"),
    [
        ({}, 0, False),
        ({}, LONG + 1, True),  # not renewed, though its process lives
        ({"started": "1"}, 0, True),  # the number is another process's by now
        ({"pid": "gone"}, 0, True),
        ({"pid": "gone", "host": "elsewhere"}, 0, False),
        ({"pid": "gone", "boot": "earlier"}, 0, False),
        ({"pid": "gone", "namespace": "pid:[1]"}, 0, False),  # another container: another process
        ({"pid": "gone", "namespace": "", "boot": ""}, 0, False),  # macOS
        ({"pid": "gone", "host": "elsewhere"}, LONG + 1, True),
        ({"host": "elsewhere", "launch": "77"}, 0, True),  # an earlier start of this launch
        ({"launch": "77"}, 0, False),  # lives for certain
        ({"host": "elsewhere", "launch": "78"}, 0, False),
    ],
)
@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_lock_is_taken_over_where_it_is_dead_or_of_the_same_launch(
    path, gone, monkeypatch, changes, age, free, variable
):
    monkeypatch.setenv(variable, "77")
    if changes.get("pid") == "gone":
        changes = changes | {"pid": gone}
    leave_lock(path, age, **({"launch": ""} | changes))
    lock = Lock(path, path.parent, dead=LONG)
    if free:
        lock.acquire()
    else:
        with pytest.raises(LockedError):
            lock.acquire()
        lock.acquire(take_over=True)
    assert json.loads(path.read_text())["token"] == lock.lease.token
    lock.release()
    assert list(path.parent.iterdir()) == []


def test_without_proc_the_renewal_decides(path, gone, monkeypatch):
    leave_lock(path, pid=gone)
    for name in ("_boot", "_namespace"):
        monkeypatch.setattr(holder, name, lambda: "")
    monkeypatch.setattr(holder, "_start_of", lambda pid: "")
    with pytest.raises(LockedError):
        Lock(path, path.parent).acquire()
    Lock(path, path.parent, dead=0).acquire()


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": "../../x"}', b"\xff"])
def test_a_lock_that_cannot_be_read_dies_like_others(path, content):
    leave_lock(path, age=10)
    os_times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(os_times.st_mtime_ns, os_times.st_mtime_ns))
    with pytest.raises(LockedError, match="cannot be read"):
        Lock(path, path.parent).acquire()
    lock = Lock(path, path.parent, dead=9)
    lock.acquire()
    lock.release()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("renewed", [True, False])
def test_waiting_ends_with_a_renewal_or_with_death(path, monkeypatch, renewed):
    lines = []

    def said(line):
        lines.append(line)
        if renewed:
            os.utime(path)

    leave_lock(path, age=9.5, host="elsewhere")
    lock = Lock(path, path.parent, dead=10)
    if renewed:
        with pytest.raises(LockedError, match="on elsewhere"):
            lock.acquire(on_wait=said)
    else:
        lock.acquire(on_wait=said)
        lock.release()
    assert len(lines) == 1


def test_a_lock_is_renewed_and_its_loss_is_noticed(path):
    first = Lock(path, path.parent, renew=0.02)
    first.acquire()
    os.utime(path, (0, 0))
    wait_for(lambda: path.stat().st_mtime > 0)
    first.check()
    second = Lock(path, path.parent)
    second.acquire(take_over=True)
    with pytest.raises(TakenOverError, match=r"has taken it over; this process stops"):
        first.confirm()
    wait_for(lambda: first._lost)  # by the next renewal
    with pytest.raises(TakenOverError):
        first.check()
    first.release()  # leaves the other's
    second.confirm()
    path.unlink()
    with pytest.raises(TakenOverError, match="was removed"):
        second.confirm()
    second.release()


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def _contend(path, folder, kill, start):
    """Take the lock some times; whoever has it must be alone. With `kill` the process dies as it holds it."""
    start.wait()
    for turn in range(6):
        lock = Lock(path, path.parent, renew=LONG)
        while True:
            try:
                lock.acquire()
                break
            except LockedError:
                time.sleep(0.001)
        mark = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # raises where another is inside
        os.close(mark)
        time.sleep(0.002)
        (folder / "inside").unlink()
        (folder / f"{os.getpid()}-{turn}").touch()
        if kill and turn == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        lock.release()


def test_of_many_processes_that_take_over_one_dead_lock_one_has_it_at_a_time(path, tmp_path, gone):
    """Some die as they hold it, so that the others take over again and again."""
    leave_lock(path, pid=gone)
    # Killed between its claim and its lock: the chain goes on from there.
    token = json.loads(path.read_text())["token"]
    leave_lock(path.with_name(f"job.lock.after-{token}"), pid=gone)
    context = multiprocessing.get_context("fork")
    start = context.Event()
    started = [
        context.Process(target=_contend, args=(path, tmp_path, number % 3 == 0, start)) for number in range(9)
    ]
    for process in started:
        process.start()
    start.set()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [-9 if n % 3 == 0 else 0 for n in range(9)]
    assert len(list(tmp_path.glob("*-*"))) == 6 * 6 + 3 * 4
    with locked(path, path.parent):
        pass
    assert list(path.parent.iterdir()) == []
