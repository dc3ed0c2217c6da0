"""The Slurm scripts of docs/cluster.md run with stand-ins for sbatch, srun, scancel and scontrol."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_the_script_of_the_docs_prepares_a_dataset(tiny_source, tmp_path):
    script = re.search(r"```bash\n(#!.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert "alexnet-prep finish" in script
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "alexnet-prep": f"#!/bin/sh\nexec {sys.executable} -c 'from cli.prep import main; main()' \"$@\"\n",
        "prepare.sh": script,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    source = tmp_path / "my images"
    source.symlink_to(tiny_source)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(
        ["prepare.sh", source, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False
    )
    output = Path(f"{log}.out").read_text()
    assert (done.returncode, done.stderr) == (0, ""), output
    assert "task 15 of 16 done" in output
    assert output.splitlines()[-1].startswith(f"{tmp_path / 'out'}: no fault in 120 images")
    prepare(read_source(tiny_source), tmp_path / "whole", Options())
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()


# Starts two tasks on this machine like Slurm's srun, and waits for them; scancel signals them.
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
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


@pytest.mark.slow
def test_the_training_script_saves_at_slurms_warning_asks_again_and_ends(tiny_dataset, tmp_path):
    """On Slurm's warning signal the job writes a checkpoint and requeues itself; the second job finishes."""
    script = re.findall(r"```bash\n(#!.*?)```", DOCS.read_text(), re.DOTALL)[1]
    small = "--recipe demo --set crop=64 --set width=0.1 --set batch_size=10"
    script = script.replace(
        "imagenet --recipe modern --out runs/a", f"'{tiny_dataset.root}' {small} $MORE --out run"
    )
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    log.touch()
    for name, text in {
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
        "alexnet-train": f"#!/bin/sh\nexec {sys.executable} -c 'from cli.train import main; main()' \"$@\"\n",
        "train.sh": script,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parents[1]),
        "LOG": str(log),
        "SLURM_JOB_ID": str(4000 + os.getpid() % 10_000),
        "OMP_NUM_THREADS": "1",
        "MORE": "--set epochs=400",
    }

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["train.sh"],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    job = submit()
    while not (tmp_path / "run" / "last.pt").exists() and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 75, output
    assert output.count("stopped by SIGUSR1 after update") == 1
    calls = log.read_text().splitlines()
    assert calls == [
        f"scancel --signal=USR1 {environment['SLURM_JOB_ID']}.0",
        f"scontrol requeue {environment['SLURM_JOB_ID']}",
    ]
    done = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["steps"]
    environment["MORE"] += f" --steps {done + 20}"
    job = submit()
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert f"ended after update {done + 20:,}" in output
    assert len(log.read_text().splitlines()) == 2
