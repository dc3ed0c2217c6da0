"""Finds out which process hangs, when others wait for it."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from pipeline.errors import RunError, ToolkitError, UsageError
from trainer.distributed.env import DistEnv, launched_outside

FAILURE_FILE = "ALEXNET_FAILURE"
"""Environment variable with the file in which a launcher's workers find it."""

_CAUSE, _KNOWN = "alexnet-failure/cause", "alexnet-failure/known"
# Processes look once a second (`trainer.distributed.failures`).
_TELL_SECONDS = 4.0
_POLL_SECONDS = 0.1


class LostPeerError(RunError):
    """Another process is gone: no cause of its own, and no reason not to start again."""


def record_failure(error: ToolkitError) -> None:
    """Keep it for processes that a launcher on this host would start anew: they would only meet it again."""
    if FAILURE_FILE in os.environ:
        Path(os.environ[FAILURE_FILE]).write_text(error_to_text(error))


def recorded_failure() -> ToolkitError | RuntimeError | None:
    """What `note` kept, or None."""
    if FAILURE_FILE not in os.environ or not Path(os.environ[FAILURE_FILE]).exists():
        return None
    text = Path(os.environ[FAILURE_FILE]).read_text()
    return error_from_text(text) or RuntimeError(text)


def announce_failure(error: ToolkitError, env: DistEnv) -> None:
    """Tell the other processes why this one ends, and wait a moment until they know.

    Else they would know no more than that it is gone; and the first process holds what they ask.
    """
    if env.world_size > 1 and not isinstance(error, LostPeerError):
        finishes_within(_TELL_SECONDS, lambda: _tell(error, env.world_size))


def announced_failure(store: Any) -> ToolkitError | None:
    """What another process told, by a connection to the processes' store; None where none has.

    Raises:
        RuntimeError: the store is gone (`torch.distributed.DistError` is one).
    """
    if not store.check([_CAUSE]):
        return None
    store.add(_KNOWN, 1)
    return error_from_text(store.get(_CAUSE).decode())


def raise_together(work: Callable[[], None], env: DistEnv) -> None:
    """Do some work in every process, and wait until all have done theirs.

    Raises:
        ToolkitError: in every process, what the first that failed raised.
    """
    found = ""
    try:
        work()
    except ToolkitError as error:
        found = error_to_text(error)
    everyone = [found]
    if env.world_size > 1:
        everyone = [""] * env.world_size
        dist.all_gather_object(everyone, found)
    if failed := next(filter(None, everyone), ""):
        raise error_from_text(failed) or ToolkitError(failed)


def error_to_text(error: ToolkitError) -> str:
    """`Name: message`, as torch's launcher writes exceptions."""
    return f"{type(error).__name__}: {error}"


def error_from_text(text: str) -> ToolkitError | None:
    """The toolkit's error that `Name: message` describes; None if it is none of them."""
    kind, _, message = text.partition(": ")
    known = (UsageError, RunError, LostPeerError)
    return next((error(message) for error in known if kind == error.__name__), None)


def finishes_within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether some work on the store ends in time and well: a stopped server leaves its clients waiting."""
    done = threading.Event()

    def run() -> None:
        with suppress(RuntimeError, dist.DistError):
            work()
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


def _tell(error: ToolkitError, processes: int) -> None:
    # A connection of its own: the process group's is held while a collective waits.
    store = _get_default_store().clone()  # type: ignore[attr-defined]
    store.compare_set(_CAUSE, "", error_to_text(error))  # the first cause is everybody's
    store.add(_KNOWN, 1)
    while store.add(_KNOWN, 0) < processes:
        time.sleep(_POLL_SECONDS)


# Compilers and file systems take their time before the first update.
_START_SECONDS = 1800.0
_EVERY_SECONDS = 1.0
# A process that lives publishes every second: one silent for so long is stopped, or cut off.
_SILENT_SECONDS = 15.0
_NO_STORE = (
    "process 0 is silent, or its host cut off: others have waited for {seconds:.0f} s; see to that host, "
    "then continue with --resume"
)


@dataclass(frozen=True)
class Sign:
    """What a process last said of itself.

    Attributes:
        host: its name.
        time: seconds since 1970, by its own clock.
        step: its updates.
        doing: what it does, as a participle: "training".
        since: seconds that it has been doing so.
    """

    host: str
    time: float
    step: int
    doing: str
    since: float


class HangWatchdog:
    """Lets processes that wait in vain name the one that hangs, or say why another ended, and end.

    Within the block a thread publishes where this process is. When it has made no progress for `seconds`,
    it reads where the others are, and ends this process with one line about those that are silent, or
    else behind. Where another process told why it ended, this one ends with the same line.
    """

    def __init__(self, env: DistEnv, seconds: float) -> None:
        """Watch `env`'s processes; a single one has nobody to wait for."""
        self._env, self._seconds = env, seconds
        self._step, self._doing, self._moved = 0, "starting", time.monotonic()
        self._limit = max(seconds, _START_SECONDS)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alexnet-watch", daemon=True)

    def at(self, step: int, doing: str) -> None:
        """Note progress: after `step` updates this process begins something."""
        self._step, self._doing, self._moved, self._limit = step, doing, time.monotonic(), self._seconds

    def __enter__(self) -> "HangWatchdog":
        if self._env.world_size > 1:
            # A connection of its own: the process group's is held while a collective waits.
            self._store = _get_default_store().clone()  # type: ignore[attr-defined]
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            answered = finishes_within(_SILENT_SECONDS, self._publish)
            if self._is_late() and not (answered and finishes_within(3 * _SILENT_SECONDS, self._give_up)):
                # The store is process 0's, or its launcher's: nobody else can be asked.
                self._end(RunError(_NO_STORE.format(seconds=self._limit)))

    def _is_late(self) -> bool:
        return time.monotonic() - self._moved > self._limit

    def _publish(self) -> None:
        since = time.monotonic() - self._moved
        sign = Sign(socket.gethostname(), time.time(), self._step, self._doing, since)
        self._store.set(_key(self._env.rank), msgspec.json.encode(sign))
        if error := announced_failure(self._store):
            self._end(error)

    def _give_up(self) -> None:
        before = self._read()
        until = time.monotonic() + _SILENT_SECONDS  # who lives publishes again meanwhile
        while time.monotonic() < until and not self._ended.wait(_EVERY_SECONDS):
            self._publish()  # as others may be asking too, who must not find this one silent
        signs = self._read()
        silent = [rank for rank in before if signs[rank] == before[rank]]
        line = describe_hang(self._env.rank, signs, silent, self._limit)
        if self._is_late() and line:
            self._end(RunError(line))

    def _read(self) -> dict[int, Sign]:
        ranks = [rank for rank in range(self._env.world_size) if self._store.check([_key(rank)])]
        return {rank: msgspec.json.decode(self._store.get(_key(rank)), type=Sign) for rank in ranks}

    def _end(self, error: ToolkitError) -> None:
        if self._ended.is_set():
            return  # with an error of its own, or well
        get_error_handler().record_exception(error)
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # nobody else would say it
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def describe_hang(rank: int, signs: dict[int, Sign], silent: list[int], seconds: float) -> str:
    """Say which processes the others wait for; "" where `rank` itself is one of them.

    Args:
        rank: who asks.
        signs: of all processes that ever gave one.
        silent: those that have stopped to.
        seconds: that nothing has moved.
    """
    if silent:
        late, what = silent, "silent"
    else:
        least = min(sign.step for sign in signs.values())
        behind = [r for r, sign in signs.items() if sign.step == least]
        odd = [r for r in behind if signs[r].doing != signs[rank].doing]
        late, what = (odd or behind if len(behind) < len(signs) or odd else []), "behind"
    if rank in late:
        return ""
    if not late:
        return (
            f"no process has moved for {seconds:.0f} s since update {signs[rank].step:,}, and none is "
            "behind: see to the network between them, then continue with --resume"
        )
    named = ", ".join(f"process {r} on {signs[r].host}" for r in late)
    one = signs[late[0]]
    last = "last heard of" if what == "silent" else "still"
    return (
        f"{named} {'are' if len(late) > 1 else 'is'} {what}: {last} {one.doing} after update {one.step:,}, "
        f"while others have waited for {seconds:.0f} s; see to that host, then continue with --resume"
    )


def _key(rank: int) -> str:
    return f"alexnet-watch/{rank}"


_ECHO_SECONDS = 5.0


def refuse_unlike(env: DistEnv, facts: dict[str, str]) -> None:
    """Compare facts of all processes with the first one's.

    Raises:
        UsageError: on every process, of the first that differs: its rank and host, and what differs.
    """
    if env.world_size == 1:
        return
    everyone: list[tuple[str, dict[str, str]]] = [("", {})] * env.world_size
    dist.all_gather_object(everyone, (socket.gethostname(), facts))
    first = everyone[0][1]
    for rank, (host, found) in enumerate(everyone):
        unlike = [name for name in first if found.get(name) != first[name]]
        if unlike and not env.is_first and launched_outside():
            time.sleep(_ECHO_SECONDS)  # the first says it for all
            sys.exit(UsageError.exit_code)
        if unlike:
            differences = "; ".join(f"{name} {found.get(name)}, process 0 {first[name]}" for name in unlike)
            raise UsageError(
                f"process {rank} on {host} has {differences}: all hosts need the same versions, data, recipe "
                "and run folder"
            )
