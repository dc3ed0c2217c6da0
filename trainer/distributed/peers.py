"""What all processes must have in common, compared before they begin."""

import socket
import sys
import time

import torch.distributed as dist

from pipeline.errors import UsageError
from trainer.distributed.env import World
from trainer.distributed.processes import launched_outside

_ECHO_SECONDS = 5.0


def refuse_unlike(world: World, facts: dict[str, str]) -> None:
    """Compare facts of all processes with the first one's.

    Raises:
        UsageError: on every process, of the first that differs: its rank and host, and what differs.
    """
    if world.size == 1:
        return
    everyone: list[tuple[str, dict[str, str]]] = [("", {})] * world.size
    dist.all_gather_object(everyone, (socket.gethostname(), facts))
    first = everyone[0][1]
    for rank, (host, found) in enumerate(everyone):
        unlike = [name for name in first if found.get(name) != first[name]]
        if unlike and not world.is_first and launched_outside():
            time.sleep(_ECHO_SECONDS)  # the first says it for all
            sys.exit(UsageError.exit_code)
        if unlike:
            differences = "; ".join(f"{name} {found.get(name)}, process 0 {first[name]}" for name in unlike)
            raise UsageError(
                f"process {rank} on {host} has {differences}: all hosts need the same versions, data, recipe "
                "and run folder"
            )
