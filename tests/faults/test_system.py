"""Commands in containers (/dev/shm, open files, CPU time), beside namesakes of our packages, and on NFS."""

from contextlib import ExitStack

import pytest
from helpers.conditions import one_line, run
from helpers.folders import tree

from pipeline import Options, finish, prepare, read_source

pytestmark = pytest.mark.slow

READ_ONLY_SHM = "mount -t tmpfs -o ro tmpfs /dev/shm"
# Two cores' time, and files of version 1 beside that of version 2.
QUOTA = """mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/cpu && cd /sys/fs/cgroup &&
echo 100000 100000 > cpu.max && echo 100000 | tee cpu/cpu.cfs_quota_us > cpu/cpu.cfs_period_us"""
COUNT_CORES = "from pipeline.host import usable_cores; print(usable_cores())"


def test_preparing_needs_no_dev_shm_few_files_and_nothing_of_the_current_folder(
    tiny_source, folder_of_namesakes
):
    arguments = ("--size", 48, "--shard-samples", 15, "--workers", 6)
    limits = {"mounts": READ_ONLY_SHM, "open_files": 16, "cwd": folder_of_namesakes}
    done = run("alexnet-prep", "shard", tiny_source, "out", *arguments, **limits)
    assert (done.code, done.stderr) == (0, "")
    assert (folder_of_namesakes / "out" / "manifest.json").exists()


def test_training_in_several_processes_says_that_it_needs_dev_shm(tiny_dataset, tmp_path):
    arguments = ("--recipe", "demo", "--set", "crop=64", "-o", tmp_path / "run", "--cpus", 2)
    done = run("alexnet-train", tiny_dataset.root, *arguments, mounts=READ_ONLY_SHM)
    assert done.code == 1
    one_line(done.stderr, "/dev/shm: Read-only file system", "--cpus 1")
    assert not (tmp_path / "run").exists()


def test_a_quota_of_cpu_time_counts():
    assert run("python", "-c", COUNT_CORES, mounts=QUOTA).stdout == "1\n"


@pytest.mark.parametrize("slices", [1, 2])
def test_where_open_files_are_not_deleted_a_complete_dataset_is_complete(
    tiny_source, tmp_path, renames_open_files, slices
):
    """After one of two slices `shard` makes the rest, after both `finish`; then each finds it complete."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    shard = ("alexnet-prep", "shard", tiny_source, out, "--size", 48, "--shard-samples", 15, "--workers", 1)
    commands = [shard, ("alexnet-prep", "finish", out)]
    for number in range(slices):
        assert run(*shard, "--task", f"{number}/2", variables=renames_open_files).code == 0
    with ExitStack() as stack:  # another process that reads these files
        for path in (out / ".work").rglob("*"):
            if path.is_file():
                stack.enter_context(path.open("rb"))
        for command in commands if slices == 1 else reversed(commands):
            done = run(*command, variables=renames_open_files)
            assert (done.code, done.stderr) == (0, "")
    left = [*out.rglob(".nfs*")]
    assert left
    for path in left:  # as NFS does when they are closed
        path.unlink()
    finish(out)
    prepare(read_source(tiny_source), whole, Options(size=48, shard_samples=15))
    assert tree(out) == tree(whole)
    assert not (out / ".work").exists()
