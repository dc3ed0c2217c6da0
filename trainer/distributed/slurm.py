"""What `srun` says to each task, in the words of torch's launchers."""

import os
import re
from collections.abc import Mapping

# Below Linux's own range for outgoing connections, which begins at 32,768.
_FIRST_PORT, _PORTS = 12_000, 20_000


def adopt_slurm(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Set RANK, WORLD_SIZE and what else torch reads, where `srun` started this process as one of several.

    Nothing is set outside such a step (a batch script has no step of several tasks), under another
    launcher, or where a variable has a value already: MASTER_ADDR and MASTER_PORT can be given.

    Returns:
        What was set.
    """
    env = os.environ if environment is None else environment
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks < 2 or "SLURM_PROCID" not in env or "RANK" in env:
        return {}
    here = int(env.get("SLURM_NODEID", "0"))
    job = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    found = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(tasks_of_nodes(env["SLURM_STEP_TASKS_PER_NODE"])[here]),
        "MASTER_ADDR": hosts_of(env["SLURM_STEP_NODELIST"])[0],
        "MASTER_PORT": str(_FIRST_PORT + job % _PORTS),
    }
    new = {name: value for name, value in found.items() if name not in env}
    if environment is None:
        os.environ.update(new)
    return new


def tasks_of_nodes(text: str) -> list[int]:
    """Slurm's short form of tasks for each node: "4(x2),3" → [4, 4, 3]."""
    tasks = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    return tasks


def hosts_of(text: str) -> list[str]:
    """Slurm's short form of a list of hosts: "gpu[01-03,7],login" → gpu01, gpu02, gpu03, gpu7, login."""
    hosts = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        hosts += _expanded(name)
    return hosts


def _expanded(name: str) -> list[str]:
    found = re.search(r"\[([^\]]*)\]", name)
    if found is None:
        return [name]
    before, after = name[: found.start()], name[found.end() :]
    numbers = []
    for part in found[1].split(","):
        low, _, high = part.partition("-")
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
    return [host for number in numbers for host in _expanded(before + number + after)]
