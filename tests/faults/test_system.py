"""Commands in containers (/dev/shm, open files, CPU time), and beside folders named like our packages."""

import pytest
from helpers.conditions import one_line, run
from helpers.folders import place

pytestmark = pytest.mark.slow

READ_ONLY_SHM = "mount -t tmpfs -o ro tmpfs /dev/shm"
# Two cores' time, and files of version 1 beside that of version 2.
QUOTA = """mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/cpu && cd /sys/fs/cgroup &&
echo 100000 100000 > cpu.max && echo 100000 | tee cpu/cpu.cfs_quota_us > cpu/cpu.cfs_period_us"""
COUNT_CORES = "from pipeline.host import usable_cores; print(usable_cores())"


def test_preparing_needs_no_dev_shm_few_files_and_nothing_of_the_current_folder(tiny_source, tmp_path):
    for name in ("pipeline/__init__.py", "cli/__init__.py", "socket.py"):
        place(tmp_path / name, b"raise ImportError('from the current folder')")
    arguments = ("--size", 48, "--shard-samples", 15, "--workers", 6)
    limits = {"mounts": READ_ONLY_SHM, "open_files": 16, "cwd": tmp_path}
    done = run("alexnet-prep", "shard", tiny_source, "out", *arguments, **limits)
    assert (done.code, done.stderr) == (0, "")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_training_in_several_processes_says_that_it_needs_dev_shm(tiny_dataset, tmp_path):
    arguments = ("--recipe", "demo", "--set", "crop=64", "-o", tmp_path / "run", "--cpus", 2)
    done = run("alexnet-train", tiny_dataset.root, *arguments, mounts=READ_ONLY_SHM)
    assert done.code == 1
    one_line(done.stderr, "/dev/shm: Read-only file system", "--cpus 1")
    assert not (tmp_path / "run").exists()


def test_a_quota_of_cpu_time_counts():
    assert run("python", "-c", COUNT_CORES, mounts=QUOTA).stdout == "1\n"
