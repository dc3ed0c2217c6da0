"""Commands under other users, homes, and launchers' variables."""

import signal
import socket

import pytest
from helpers.conditions import ended, run, start

pytestmark = pytest.mark.slow

SMALL = ("--recipe", "demo", "--set", "crop=64", "--set", "width=0.05", "--set", "batch_size=10")
QUICK = (*SMALL, "--set", "compile=false", "--cpus", 1)


def test_who_waits_for_processes_that_nobody_starts_says_so_and_can_be_interrupted(tiny_dataset, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"NUM_TASKS": "2", "TASKS_PER_NODE": "2", "NODELIST": "localhost"}
    slurm = {f"SLURM_STEP_{name}": value for name, value in step.items()}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "MASTER_PORT": port}
    process = start("alexnet-train", tiny_dataset.root, "--out", tmp_path / "run", *QUICK, variables=slurm)
    line = process.stderr.readline().decode()
    assert line.startswith(f"waiting for 2 processes to meet at localhost:{port}, as SLURM_PROCID=0, ")
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130


def test_a_user_without_a_home_trains(open_dataset, open_folder):
    variables = {"HOME": None, "USER": None, "LOGNAME": None}
    out = ("--out", open_folder / "run", "--max-steps", 1)
    done = run("alexnet-train", open_dataset, *out, *QUICK, unprivileged=True, variables=variables)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (open_folder / "run" / "last.pt").exists()
