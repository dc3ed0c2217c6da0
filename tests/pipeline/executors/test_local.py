import errno
import os
import time
from contextlib import closing
from functools import partial

import pytest

from pipeline.errors import RunError, UsageError
from pipeline.executors.local import LocalExecutor, count_image


def double(number):
    return 2 * number


def handle(images):
    for _ in range(images):
        count_image()
    return os.getpid()


def touch(folder, name):
    (folder / name).touch()
    time.sleep(0.05)
    return name


def refuse(number):
    raise UsageError(f"task {number} refuses")


def die(number):
    if number == 3:
        os._exit(9)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_gives_its_result_once(workers):
    assert sorted(LocalExecutor(workers).run(double, range(20))) == list(range(0, 40, 2))


def test_no_item_is_no_work():
    assert list(LocalExecutor(2).run(double, [])) == []


def test_tasks_run_in_other_processes_and_are_counted():
    reports_progress = []
    pids = set(LocalExecutor(2).run(handle, [3, 4, 5, 6], reports_progress.append))
    assert os.getpid() not in pids
    assert reports_progress == sorted(reports_progress)
    assert reports_progress[-1] == 18


def test_closing_cancels_what_has_not_begun(tmp_path):
    names = [str(k) for k in range(50)]
    with closing(LocalExecutor(1).run(partial(touch, tmp_path), names)) as results:
        next(results)
    assert len(list(tmp_path.iterdir())) < 10


def test_an_error_of_a_task_is_the_callers():
    with pytest.raises(UsageError, match="task 1 refuses"):
        list(LocalExecutor(1).run(refuse, [1]))


def test_a_dead_worker_is_a_run_error():
    with pytest.raises(RunError, match="a worker process died"):
        list(LocalExecutor(2).run(die, range(8)))


def test_without_semaphores_tasks_run_all_the_same(monkeypatch):
    """They need a /dev/shm that can be written."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    assert sorted(LocalExecutor(2).run(double, range(4))) == [0, 2, 4, 6]
