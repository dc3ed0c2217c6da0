"""The commands of docs/cluster.md run with stand-ins for sbatch, srun, scancel and scontrol."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import tree

from pipeline import Options, prepare, read_source
from trainer.runs import checkpoint

DOCS = Path(__file__).parents[1] / "docs" / "cluster.md"

# Runs each job immediately, its array tasks one after the other, and logs it. Like Slurm, it starts a
# dependent job only if the other one succeeded.
SBATCH = """#!/usr/bin/env bash
set -eu
array= parsable= depends= wrap=
while [ $# -gt 0 ]; do
  case $1 in
    --parsable) parsable=1 ;;
    --array=*) array=${1#--array=} ;;
    --dependency=afterok:*) depends=${1#--dependency=afterok:} ;;
    --wrap) wrap=$2; shift ;;
    --job-name=*|--cpus-per-task=*|--mem=*|--time=*) ;;
    *) echo "sbatch: unknown option $1" >&2; exit 1 ;;
  esac
  shift
done
[ -z "$depends" ] || grep -qx "$depends ok" "$LOG"
id=$(( $(wc -l < "$LOG") + 100 ))
if [ -n "$array" ]; then
  for task in $(seq ${array%-*} ${array#*-}); do
    SLURM_ARRAY_TASK_ID=$task sh -c "$wrap" >> "$LOG.out" 2>&1
  done
else
  sh -c "$wrap" >> "$LOG.out" 2>&1
fi
echo "$id ok" >> "$LOG"
[ -z "$parsable" ] || echo "$id"
"""


PREPARE, TRAIN = re.findall(r"```bash\n(#!.*?)```", DOCS.read_text(), re.DOTALL)
TORCHRUN = re.search(r"```bash\n(torchrun .*?)```", DOCS.read_text(), re.DOTALL)[1]


def add_tools(folder: Path, scripts: dict[str, str]) -> None:
    """Write executable scripts, name → text, to the subfolder `bin`."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def python(arguments: str) -> str:
    return f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n'


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Environment in which the folder `bin` is first on the path; it has our commands and torchrun."""
    add_tools(
        tmp_path,
        {
            "alexnet-prep": python("-c 'from cli.prep import main; main()'"),
            "alexnet-train": python("-c 'from cli.train import main; main()'"),
            "torchrun": python("-m torch.distributed.run"),
        },
    )
    (tmp_path / "log").touch()
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parents[1]),
        "LOG": str(tmp_path / "log"),
        "OMP_NUM_THREADS": "1",
    }


def test_the_script_of_the_docs_prepares_a_dataset(tiny_source, tmp_path, environment):
    script = PREPARE.replace("0-15", "0-1").replace("/16", "/2")
    add_tools(tmp_path, {"sbatch": SBATCH, "prepare.sh": script})
    source = tmp_path / "my images"
    source.symlink_to(tiny_source)
    done = subprocess.run(
        ["prepare.sh", source, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False
    )
    output = (tmp_path / "log.out").read_text()
    assert (done.returncode, done.stderr) == (0, ""), output
    assert "task 1 of 2 done" in output
    assert output.splitlines()[-1].startswith(f"{tmp_path / 'out'}: no fault in 120 images")
    prepare(read_source(tiny_source), tmp_path / "whole", Options())
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")


# Starts two tasks on this machine like Slurm's srun, and waits for them; scancel signals them.
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
[ "$SRUN_CPUS_PER_TASK" = "$SLURM_CPUS_PER_TASK" ] || exit 3
pids=()
for task in 0 1; do
  SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=localhost \\
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
  pids+=($!)
done
echo "${pids[@]}" > "$LOG.pids"
worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  code=$?
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$LOG"
kill -USR1 $(cat "$LOG.pids")
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$LOG"
"""


def for_the_test(text: str, data: Path) -> str:
    """Replace the run of the docs by a small one of `data`, with the options in $MORE."""
    small = "--recipe demo --set crop=64 --set width=0.1 --set batch_size=10 --out run $MORE"
    return text.replace("imagenet --recipe modern --out runs/a", f"'{data}' {small}")


def spawned(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


@pytest.mark.slow
def test_the_training_script_saves_at_slurms_warning_asks_again_and_ends(tiny_dataset, tmp_path, environment):
    """On Slurm's warning signal the job writes a checkpoint and requeues itself; the second job finishes."""
    script = for_the_test(TRAIN, tiny_dataset.root)
    add_tools(tmp_path, {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "train.sh": script})
    number = str(4000 + os.getpid() % 10_000)
    environment |= {"SLURM_JOB_ID": number, "SLURM_CPUS_PER_TASK": "1", "MORE": "--set epochs=400"}
    job = spawned("train.sh", cwd=tmp_path, env=environment)
    while not (tmp_path / "run" / "last.pt").exists() and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 75, output
    assert output.count("stopped by SIGUSR1 after update") == 1
    calls = [f"scancel --signal=USR1 {number}.0", f"scontrol requeue {number}"]
    assert (tmp_path / "log").read_text().splitlines() == calls
    done = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["steps"]
    environment["MORE"] += f" --max-steps {done + 5}"
    job = spawned("train.sh", cwd=tmp_path, env=environment)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert f"ended after update {done + 5:,}" in output
    assert (tmp_path / "log").read_text().splitlines() == calls


@pytest.mark.slow
def test_the_torchrun_command_on_two_hosts_trains_one_network(tiny_dataset, tmp_path, environment):
    """Both hosts are this one."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    line = for_the_test(TORCHRUN, tiny_dataset.root).replace("node1:29400", f"localhost:{port}")
    line = line.replace(
        "--nnodes 4 --nproc-per-node 8", "--nnodes 2 --nproc-per-node 1 --local-addr localhost"
    )
    environment["MORE"] = "--cpus 1 --max-steps 3"
    hosts = [spawned("bash", "-c", line, cwd=tmp_path, env=environment) for _ in range(2)]
    outputs = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert sorted("ended after update 3" in output for output in outputs) == [False, True]
