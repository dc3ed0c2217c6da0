"""A run's folder: recipe.toml, run.json, metrics.jsonl and checkpoints, each whole or absent."""

import datetime
import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.host import usable_cores
from pipeline.storage.atomic import make_folder, write_bytes
from trainer.distributed.env import DistEnv
from trainer.recipe import Recipe
from trainer.runs import checkpoint
from trainer.runs.checkpoint_file import DamagedError
from trainer.runs.records import Validation

RECIPE_FILE = "recipe.toml"
RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
REPORT_FILE = "report.html"
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's events in a run's folder."""


def create(folder: Path, recipe: Recipe, dataset: Dataset, validation: Validation, env: DistEnv) -> None:
    """Create a run's folder with recipe.toml and run.json; `output.claim` says whether it may be used.

    Args:
        folder: The run's folder.
        recipe: Recipe to write as recipe.toml.
        dataset: Dataset whose URL or path and hash are written to run.json.
        validation: How the run validates; written to run.json.
        env: This process's environment; the machine is described in run.json.

    Raises:
        RunError: The folder cannot be written.
    """
    make_folder(folder)
    write_bytes(folder / RECIPE_FILE, recipe.to_toml().encode())
    facts = {
        "recipe": recipe.name,
        "dataset": dataset.url if dataset.store.local is None else str(dataset.root.resolve()),
        "dataset_sha256": dataset.fingerprint,
        "validation": asdict(validation),
        "machine": machine(env),
        **provenance(),
    }
    write_bytes(folder / RUN_FILE, json.dumps(facts, indent=1).encode() + b"\n")


def machine(env: DistEnv) -> dict[str, str]:
    """Describe all that a run's bits depend on besides recipe, data and seed; part of every checkpoint."""
    found = {name: version(name) for name in ("alexnet-toolkit", "torch", "numpy")}
    return found | {
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "device": env.kind,
        "processor": torch.cuda.get_device_name(env.device) if env.kind == "gpu" else _processor(),
        "processes": str(env.world_size),
        "torch threads": str(torch.get_num_threads()),
    }


def common_facts(
    recipe: Recipe, dataset: Dataset, validation: Validation, env: DistEnv, precision: torch.dtype
) -> dict[str, str]:
    """Collect what must be the same in all processes, for `refuse_unlike`.

    Args:
        recipe: The run's recipe.
        dataset: The run's dataset.
        validation: How the run validates.
        env: This process's environment.
        precision: The recipe's precision as this machine computes it.

    Returns:
        Name → value: versions, device, hashes of dataset and recipe, precision, validation.
    """
    versions = ("alexnet-toolkit", "torch", "numpy", "device")
    facts = {name: text for name, text in machine(env).items() if name in versions}
    return facts | {
        "dataset": dataset.fingerprint[:16],
        "precision": str(precision).removeprefix("torch."),
        "recipe": hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16],
        "validation": str(validation),
    }


def same_processes(saved: dict[str, Any], env: DistEnv) -> bool:
    """Whether a checkpoint was saved by as many processes of the same kind, and so has this rank's state."""
    return len(saved["ranks"]) == env.world_size and saved["machine"]["device"] == env.kind


def sums_of(saved: dict[str, Any], env: DistEnv) -> Tensor:
    """Return this process's totals of a begun epoch: float64 (3,) on its device.

    With another number or kind of processes than the checkpoint's, rank 0 gets the sum of all ranks.
    """
    sums = torch.tensor([rank["sums"] for rank in saved["ranks"]], dtype=torch.float64, device=env.device)
    if same_processes(saved, env):
        return sums[env.rank]
    return sums.sum(dim=0) if env.is_first else torch.zeros_like(sums[0])


def difference(saved: dict[str, Any], env: DistEnv) -> str:
    """Return a log line on why a resumed run will not be bit-identical to an uninterrupted one, or ""."""
    was, now = saved["machine"], machine(env)
    changed = [f"{name} was {was.get(name)}, is {now[name]}" for name in now if was.get(name) != now[name]]
    if not changed:
        return ""
    return (
        f"{'; '.join(changed)}: floating-point order may differ, and the result will not be bit-identical to "
        "an uninterrupted run's"
    )


def _processor() -> str:
    """Return the CPU's model name (from Linux, else from `platform`) and the instruction set that torch uses.

    The name alone is not enough: virtual machines give processors of several generations the same one.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: a recipe.toml."""
    return (folder / RECIPE_FILE).is_file()


def read_validation(folder: Path) -> Validation:
    """Read how a run validates from its run.json.

    Raises:
        UsageError: The file is missing or damaged.
    """
    path = folder / RUN_FILE
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return msgspec.convert(facts["validation"], Validation)
    except (OSError, KeyError, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: damaged, or written by another release ({error})") from error


def read_last(
    folder: Path, recipe: Recipe, dataset: Dataset, validation: Validation
) -> tuple[dict[str, Any] | None, str]:
    """Read the checkpoint that a run continues from.

    Returns:
        The checkpoint's content, or None where the run was stopped before its first; and a line for the log,
        or "".

    Raises:
        UsageError: There is no run, it has another recipe or dataset or validates otherwise, or none of its
            checkpoints can be read.
    """
    if not is_run(folder):
        raise UsageError(f"{folder}: no run to resume (no {RECIPE_FILE}); start one with --resume or without")
    newest = folder / checkpoint.LAST
    files = [path for path in [newest, *checkpoint.steps_of(folder)] if path.is_file()]
    if not files:
        return None, f"{folder}: stopped before its first checkpoint, starting again"
    damage = ""
    for path in files:
        try:
            saved = checkpoint.load(path)
        except DamagedError as error:
            damage = damage or str(error)
            continue
        _refuse_other(saved, path, recipe, dataset, validation)
        return saved, f"{damage}; going on from {path}" if damage else ""
    raise UsageError(f"{damage}; no earlier one can be read either: delete {folder} to start again")


def _refuse_other(
    saved: dict[str, Any], path: Path, recipe: Recipe, dataset: Dataset, validation: Validation
) -> None:
    if saved.get("recipe") != recipe.to_toml():
        raise UsageError(
            f"{path}: made with another recipe; leave --recipe and --set out to continue with the run's own"
        )
    if saved.get("dataset") != dataset.fingerprint:
        raise UsageError(f"{path}: trained on other data than {dataset.url}; give the same dataset")
    if not {"scaler", "validation"} <= saved.keys():
        raise UsageError(f"{path}: saved by an older release in another form; start another --out")
    if saved["validation"] != asdict(validation):
        raise UsageError(
            f"{path}: of a run with other --val-every-steps, --patience or --no-val; leave them out to "
            "continue with the run's own"
        )
    if saved.get("one_batch"):
        raise UsageError(f"{path}: made with {saved['one_batch']}, which is not resumed; start another --out")


def provenance() -> dict[str, object]:
    """Describe host, hardware, command, start time and, in a git checkout, the toolkit's commit."""
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
    """Return a git checkout's commit, followed by "changed" where files differ from it; "" outside of one."""
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
