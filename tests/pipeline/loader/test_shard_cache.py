"""The shard cache: complete copies, the limit, and processes that use it at the same time."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.folders import overwrite, place
from helpers.synthetic import tiny_images, write_dataset

from pipeline import RunError
from pipeline.loader import shard_cache as cache_module
from pipeline.loader.shard_cache import Cache
from pipeline.storage.base import ByteRange
from pipeline.storage.local import LocalStore


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of eight training shards."""
    return write_dataset(tmp_path_factory.mktemp("cached") / "data", {"train": tiny_images(40)}, 16, 8)


@pytest.fixture(scope="module")
def shards(data):
    return data.shards("train")


@pytest.fixture(scope="module")
def largest(shards):
    return max(shard.bytes for shard in shards)


NEVER = threading.Event()


class CountingStore(LocalStore):
    """Records which files are copied, and damages the first `damaged` copies."""

    def __init__(self, url, damaged=0):
        super().__init__(url)
        self.copied: list[str] = []
        self.damaged = damaged

    def copy_to(self, name, path):
        self.copied.append(name)
        super().copy_to(name, path)
        if self.damaged:
            self.damaged -= 1
            overwrite(path, 600, b"rot")


def make(data, folder, limit=None, damaged=0):
    return Cache(folder, limit, CountingStore(data.url, damaged), data.fingerprint)


@contextmanager
def leased(cache, shards, over=NEVER):
    """Keep shards in the cache, and yield their paths."""
    with ExitStack() as leases:
        yield [Path(leases.enter_context(cache.lease(shard, over))) for shard in shards]


def fetch(cache, shards):
    """Bring shards into the cache."""
    with leased(cache, shards):
        pass


def kept(folder):
    """Numbers of the shards in a cache."""
    return sorted(int(path.stem.removeprefix("train-")) for path in folder.rglob("train-*.tar"))


def test_shards_are_brought_once_and_are_the_same_bytes(data, shards, tmp_path):
    cache = make(data, tmp_path)
    for _ in range(2):
        with leased(cache, shards) as paths:
            copies = [path.read_bytes() for path in paths]
        assert copies == [tar.read_bytes() for tar in data.tars("train")]
    assert cache.store.copied == [shard.name for shard in shards]
    assert not list(tmp_path.rglob("*.partial"))
    again = make(data, tmp_path)  # another process finds them
    fetch(again, shards)
    assert again.store.copied == []


def test_the_least_recently_used_go_when_there_is_no_room(data, shards, largest, tmp_path):
    cache = make(data, tmp_path, limit=3 * largest)
    for number in (0, 1, 2, 0, 3):
        fetch(cache, [shards[number]])
        time.sleep(0.01)
    assert kept(tmp_path) == [0, 2, 3]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= cache.limit


def test_only_what_the_cache_made_is_deleted_or_replaced(data, shards, largest, tmp_path):
    fetch(make(data, tmp_path), shards[:2])
    copy = next(tmp_path.rglob("train-000001.tar"))
    ours = {path.name for path in tmp_path.iterdir()}
    others = [tmp_path / "backup.tar", copy.with_name("other.tar"), copy.with_name("train-000005.tar")]
    for path in others:
        place(path, b"mine")
        os.utime(path, (0, 0))
    cache = make(data, tmp_path, limit=largest + 100)
    for number in (2, 3, 4):
        fetch(cache, shards[number : number + 1])
    assert kept(copy.parent) == [4, 5]
    with pytest.raises(RunError, match=r"train-000005\.tar: another program's file"):
        fetch(cache, shards[5:6])
    assert all(path.read_bytes() == b"mine" for path in others)
    assert {path.name for path in tmp_path.iterdir()} == ours | {"backup.tar"}


def test_what_is_in_use_stays(data, shards, largest, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_WAIT_SECONDS", 0.3)
    cache = make(data, tmp_path, limit=2 * largest)
    with (
        leased(cache, shards[:2]),
        pytest.raises(RunError, match=r"no room for train-000002\.tar: all shards in the cache are in use"),
    ):
        fetch(cache, shards[2:3])
    fetch(cache, shards[2:4])
    assert kept(tmp_path) == [2, 3]


def test_room_is_waited_for(data, shards, largest, tmp_path, monkeypatch):
    """The shards in use are released at the first wait."""
    cache = make(data, tmp_path, limit=2 * largest)
    lease = leased(cache, shards[:2])
    lease.__enter__()
    released = threading.Event()

    def sleep(_):
        if not released.is_set():
            released.set()
            lease.__exit__(None, None, None)

    monkeypatch.setattr(cache_module.time, "sleep", sleep)
    fetch(cache, shards[2:3])
    assert released.is_set()
    assert 2 in kept(tmp_path)


class WatchedStore(LocalStore):
    """Counts the shards in the cache while each shard is half copied."""

    def __init__(self, url, folder):
        super().__init__(url)
        self.folder, self.most = folder, 0

    def copy_to(self, name, path):
        path.write_bytes(self.read(ByteRange(name))[:600])
        time.sleep(0.02)
        names = {file.name.removesuffix(".partial") for file in self.folder.rglob("*.[tp]ar*")}
        self.most = max(self.most, len({name for name in names if name.endswith(".tar")}))
        super().copy_to(name, path)


def test_the_limit_holds_while_shards_are_on_their_way(data, shards, largest, tmp_path):
    store = WatchedStore(data.url, tmp_path)
    cache = Cache(tmp_path, 2 * largest, store, data.fingerprint)
    threads = [threading.Thread(target=fetch, args=(cache, [shard])) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < store.most <= 2


def test_after_an_error_the_shard_is_released(data, shards, largest, tmp_path):
    cache = make(data, tmp_path, limit=largest)
    with pytest.raises(RunError, match=r"cannot copy .*nowhere\.tar to .*No such file"):
        fetch(cache, [replace(shards[0], name="train/nowhere.tar")])
    fetch(cache, shards[2:3])  # there is room for it only if the other's was given back
    assert kept(tmp_path) == [2]


@pytest.mark.parametrize("waiting", ["nothing", "room", "another process"])
def test_what_is_over_fetches_nothing_and_waits_no_longer(
    data, shards, largest, tmp_path, monkeypatch, waiting
):
    """It becomes over at the first wait, or before."""
    over, cache = threading.Event(), make(data, tmp_path, limit=2 * largest)
    monkeypatch.setattr(cache_module.time, "sleep", lambda _: over.set())
    with leased(cache, shards[:2]) as [path, _], path.with_name(path.name + ".fetch").open("ab") as lock:
        if waiting == "nothing":
            over.set()
        wanted = shards[2]
        if waiting == "another process":
            overwrite(path, 600, b"rot")
            cache, wanted = make(data, tmp_path), shards[0]
            fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another iteration began"), cache.lease(wanted, over):
            pass
    assert over.is_set()
    assert shards[2].name not in cache.store.copied
    assert kept(tmp_path) == [0, 1]


def test_a_damaged_copy_is_fetched_again_and_three_are_an_error(data, shards, tmp_path):
    cache = make(data, tmp_path / "a", damaged=2)
    fetch(cache, shards[:1])
    assert len(cache.store.copied) == 3
    cache = make(data, tmp_path / "b", damaged=3)
    with pytest.raises(RunError, match="fetched 3 times, and its SHA-256 is never the manifest's"):
        fetch(cache, shards[:1])
    assert kept(tmp_path / "b") == []
    assert not list(tmp_path.rglob("*.partial"))


def test_rot_in_a_copy_that_another_process_uses_is_replaced_under_it(data, shards, tmp_path):
    with make(data, tmp_path).lease(shards[0], NEVER) as name, Path(name).open("rb") as used:
        overwrite(Path(name), 600, b"rot")
        cache = make(data, tmp_path, limit=shards[0].bytes)  # no room for a second
        fetch(cache, shards[:1])
        rotten = used.read()
    assert cache.store.copied == [shards[0].name]
    assert Path(name).read_bytes() == data.tars("train")[0].read_bytes() != rotten


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_elses_is_one_line(data, shards, tmp_path):
    fetch(make(data, tmp_path), shards[:1])
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        folder.chmod(0o500)
    with pytest.raises(RunError, match=r"Permission denied; cannot keep train-000001\.tar in --cache"):
        fetch(make(data, tmp_path), shards[1:2])


def test_a_folder_that_cannot_be_written_is_one_line(data, shards, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot create the folder .*file"):
        fetch(make(data, tmp_path / "file"), shards[:1])


def _use(data, folder, limit, queue):
    """In a child process: lease pairs of shards in turn, check their sizes, and report which were fetched."""
    cache = make(data, folder, limit)
    for pair in pairwise(data.shards("train")):
        with leased(cache, pair) as paths:
            assert [path.stat().st_size for path in paths] == [shard.bytes for shard in pair]
    queue.put(cache.store.copied)


@pytest.mark.parametrize("room", [8, 4])
def test_processes_that_start_at_once_share_the_work(data, shards, largest, tmp_path, room):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_use, args=(data, tmp_path, room * largest, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    copied = [name for _ in workers for name in queue.get(timeout=60)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert set(copied) == {shard.name for shard in shards}
    if room == len(shards):
        assert len(copied) == len(shards)  # each once, by one of the processes
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= room * largest


class SlowStore(LocalStore):
    """Takes a minute to copy a shard."""

    def copy_to(self, name, path):
        path.write_bytes(b"half")
        time.sleep(60)


def _fetch_for_ever(data, folder):
    fetch(Cache(folder, None, SlowStore(data.url), data.fingerprint), data.shards("train")[:1])


def test_what_a_killed_process_left_is_no_obstacle(data, shards, largest, tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fetch_for_ever, args=(data, tmp_path))
    process.start()
    while not list(tmp_path.rglob("*.partial")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.rglob("*.partial"))
    cache = make(data, tmp_path, limit=largest)
    fetch(cache, shards[1:2])  # needs the room that the killed process had reserved
    assert not list(tmp_path.rglob("*.partial"))
    fetch(cache, shards[:1])
    assert kept(tmp_path) == [0]
