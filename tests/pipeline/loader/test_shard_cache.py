"""The shard cache: complete copies, the limit, and processes that use it at the same time."""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
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
            with path.open("r+b") as file:
                file.seek(600)
                file.write(b"rot")


def make(data, folder, limit=None, damaged=0):
    return Cache(folder, limit, CountingStore(data.url, damaged), data.fingerprint)


def kept(folder):
    return sorted(path.name for path in folder.rglob("*.tar"))


def test_shards_are_brought_once_and_are_the_same_bytes(data, tmp_path):
    shards, cache = data.shards("train"), make(data, tmp_path)
    for _ in range(2):
        lease = cache.lease(shards)
        for path, tar in zip(lease.paths, data.tars("train"), strict=True):
            assert Path(path).read_bytes() == tar.read_bytes()
        lease.release()
    assert sorted(cache.store.copied) == [shard.name for shard in shards]
    assert not list(tmp_path.rglob("*.partial"))
    again = make(data, tmp_path)  # another process finds them
    again.lease(shards).release()
    assert again.store.copied == []


def test_the_least_recently_used_go_when_there_is_no_room(data, tmp_path):
    shards = data.shards("train")
    cache = make(data, tmp_path, limit=3 * max(shard.bytes for shard in shards))
    for shard in [*shards[:3], shards[0], shards[3]]:
        cache.lease([shard]).release()
        time.sleep(0.01)
    assert kept(tmp_path) == [f"train-00000{k}.tar" for k in (0, 2, 3)]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= cache.limit


def test_what_is_in_use_stays(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_WAIT_SECONDS", 0.3)
    shards = data.shards("train")
    cache = make(data, tmp_path, limit=2 * max(shard.bytes for shard in shards))
    lease = cache.lease(shards[:2])
    with pytest.raises(RunError, match=r"no room for train-000002\.tar: all shards in the cache are in use"):
        cache.lease(shards[2:3])
    lease.release()
    cache.lease(shards[2:4]).release()
    assert kept(tmp_path) == ["train-000002.tar", "train-000003.tar"]


class WatchedStore(LocalStore):
    """Counts the shards in the cache while each shard is half copied."""

    def __init__(self, url, folder):
        super().__init__(url)
        self.folder, self.most = folder, 0

    def copy_to(self, name, path):
        path.write_bytes(self.read(ByteRange(name))[:600])
        time.sleep(0.1)
        names = {file.name.removesuffix(".partial") for file in self.folder.rglob("*.[tp]ar*")}
        self.most = max(self.most, len({name for name in names if name.endswith(".tar")}))
        super().copy_to(name, path)


def test_the_limit_holds_while_shards_are_on_their_way(data, tmp_path):
    shards = data.shards("train")
    store = WatchedStore(data.url, tmp_path)
    cache = Cache(tmp_path, 2 * max(shard.bytes for shard in shards), store, data.fingerprint)
    threads = [threading.Thread(target=lambda s=s: cache.lease([s]).release()) for s in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < store.most <= 2


def test_a_cache_that_is_stopped_fetches_nothing_more(data, tmp_path):
    cache = make(data, tmp_path)
    cache.stop()
    with pytest.raises(RunError, match="the loader was closed"):
        cache.lease(data.shards("train"))
    assert cache.store.copied == []


def test_room_is_waited_for(data, tmp_path):
    shards = data.shards("train")
    cache = make(data, tmp_path, limit=2 * max(shard.bytes for shard in shards))
    lease = cache.lease(shards[:2])
    threading.Timer(0.3, lease.release).start()
    cache.lease(shards[2:4]).release()
    assert kept(tmp_path) == ["train-000002.tar", "train-000003.tar"]


def test_one_that_fails_lets_go_of_the_others(data, tmp_path):
    shards, cache = data.shards("train"), make(data, tmp_path)
    missing = replace(shards[1], name="train/nowhere.tar")
    with pytest.raises(RunError, match=r"cannot copy .*nowhere\.tar to .*No such file"):
        cache.lease([shards[0], missing])
    cache.limit = 2 * max(shard.bytes for shard in shards)
    cache.lease(shards[2:4]).release()  # there is room for them only if shard 0 was released
    assert kept(tmp_path) == ["train-000002.tar", "train-000003.tar"]


def test_a_damaged_copy_is_fetched_again_and_three_are_an_error(data, tmp_path):
    shard = data.shards("train")[0]
    cache = make(data, tmp_path / "a", damaged=2)
    cache.lease([shard]).release()
    assert len(cache.store.copied) == 3
    cache = make(data, tmp_path / "b", damaged=3)
    with pytest.raises(RunError, match="fetched 3 times, and its SHA-256 is never the manifest's"):
        cache.lease([shard])
    assert kept(tmp_path / "b") == []
    assert not list(tmp_path.rglob("*.partial"))


def test_rot_in_the_cache_is_found_by_the_next_process(data, tmp_path):
    shard = data.shards("train")[0]
    lease = make(data, tmp_path).lease([shard])
    lease.release()
    with Path(lease.paths[0]).open("r+b") as file:
        file.seek(700)
        file.write(b"rot")
    cache = make(data, tmp_path)
    cache.lease([shard]).release()
    assert cache.store.copied == [shard.name]
    assert Path(lease.paths[0]).read_bytes() == data.tars("train")[0].read_bytes()


def test_rot_in_a_copy_that_another_process_uses_is_replaced_under_it(data, tmp_path):
    shard = data.shards("train")[0]
    lease = make(data, tmp_path).lease([shard])
    with Path(lease.paths[0]).open("r+b") as file:
        file.seek(700)
        file.write(b"rot")
        file.flush()
        rotten = Path(lease.paths[0]).read_bytes()
        cache = make(data, tmp_path, limit=shard.bytes)  # no room for a second
        cache.lease([shard]).release()
        file.seek(0)
    assert cache.store.copied == [shard.name]
    assert Path(lease.paths[0]).read_bytes() == data.tars("train")[0].read_bytes() != rotten
    lease.release()


def test_after_an_error_no_more_shards_are_fetched(data, tmp_path):
    shards, cache = data.shards("train"), make(data, tmp_path)
    missing = [replace(shards[0], name=f"train/nowhere-{k}.tar") for k in range(4)]
    with pytest.raises(RunError, match=r"cannot copy .*nowhere-0\.tar"):
        cache.lease([*missing, *shards])
    assert len(cache.store.copied) < len(missing) + len(shards)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_elses_is_one_line(data, tmp_path):
    make(data, tmp_path).lease(data.shards("train")[:1]).release()
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        folder.chmod(0o500)
    with pytest.raises(RunError, match=r"Permission denied; cannot keep train-000001\.tar in --cache"):
        make(data, tmp_path).lease(data.shards("train")[1:2])


def _use(data, folder, limit, queue):
    """In a child process: lease pairs of shards in turn, check their sizes, and report which were fetched."""
    cache = make(data, folder, limit)
    shards = data.shards("train")
    for k in range(len(shards) - 1):
        lease = cache.lease(shards[k : k + 2])
        for path, shard in zip(lease.paths, shards[k : k + 2], strict=True):
            assert Path(path).stat().st_size == shard.bytes
        lease.release()
    queue.put(cache.store.copied)


@pytest.mark.parametrize("room", [None, 6])
def test_processes_that_start_at_once_share_the_work(data, tmp_path, room):
    largest = max(shard.bytes for shard in data.shards("train"))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    limit = room and room * largest
    workers = [context.Process(target=_use, args=(data, tmp_path, limit, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    copied = [name for _ in workers for name in queue.get(timeout=60)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    names = [shard.name for shard in data.shards("train")]
    if room is None:
        assert sorted(copied) == names  # each once, by one of the processes
    else:
        assert set(copied) == set(names)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= limit


class SlowStore(LocalStore):
    """Takes a minute to copy a shard."""

    def copy_to(self, name, path):
        path.write_bytes(b"half")
        time.sleep(60)


def _fetch_for_ever(data, folder):
    Cache(folder, None, SlowStore(data.url), data.fingerprint).lease(data.shards("train")[:1])


def test_what_a_killed_process_left_is_no_obstacle(data, tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fetch_for_ever, args=(data, tmp_path))
    process.start()
    while not list(tmp_path.rglob("*.partial")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shards = data.shards("train")
    assert list(tmp_path.rglob("*.partial"))
    cache = make(data, tmp_path, limit=max(shard.bytes for shard in shards))
    cache.lease(shards[1:2]).release()  # needs the room that the killed process had reserved
    assert not list(tmp_path.rglob("*.partial"))
    cache.lease(shards[:1]).release()
    assert kept(tmp_path) == ["train-000000.tar"]


def test_a_folder_that_cannot_be_written_is_one_line(data, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot create the folder .*file"):
        make(data, tmp_path / "file").lease(data.shards("train")[:1])
