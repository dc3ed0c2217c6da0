"""Where a run comes from: the machine, the code and the command, for run.json."""

import datetime
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.cores import usable_cores


def provenance() -> dict[str, object]:
    """Host, hardware, command, time, and the state of the toolkit's git checkout where it is one."""
    found: dict[str, object] = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "host": {
            "name": socket.gethostname(),
            "system": platform.platform(),
            "cores": usable_cores(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        },
    }
    code = git_state(Path(__file__).resolve().parents[2])
    return found | ({"git": code} if code else {})


def git_state(folder: Path) -> str:
    """The commit of a checkout, with "changed" where files differ from it; '' where it is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    # A package that is installed below another project's checkout is not part of it.
    if not commit or _git(folder, "rev-parse", "--show-toplevel") != str(folder):
        return ""
    return f"{commit} changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
