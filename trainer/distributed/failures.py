"""Failures of processes: share errors, report which process hangs, refuse processes that differ."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from pipeline.errors import RunError, ToolkitError, UsageError
from trainer.distributed.env import DistEnv, launched_outside

# Keys in the processes' store: the announced error, and how many processes know it.
_CAUSE, _KNOWN = "alexnet-failure/cause", "alexnet-failure/known"
# The watchdogs of the other processes read the store once a second (_EVERY_SECONDS).
_ANNOUNCE_SECONDS = 4.0
_POLL_SECONDS = 0.1


class LostPeerError(RunError):
    """Another process is gone. This one has no error of its own, and a restart may help."""


# Errors that other processes rebuild from their names; the first that fits counts.
_TYPES: tuple[type[ToolkitError], ...] = (UsageError, LostPeerError, RunError)


def announce_failure(error: ToolkitError, env: DistEnv) -> None:
    """Publish this process's error in the processes' store, and wait up to 4 s until all have read it.

    Without it the others would see only that this process is gone. The wait is needed because the store may
    live in this very process.
    """
    if env.world_size > 1:
        finishes_within(_ANNOUNCE_SECONDS, lambda: _announce(error, env.world_size))


def raise_together(work: Callable[[], None], env: DistEnv) -> None:
    """Run `work` in every process, wait for all, and raise an error of one in all of them.

    Raises:
        ToolkitError: In every process, the error of the lowest rank whose `work` failed.
    """
    found: ToolkitError | None = None
    try:
        work()
    except ToolkitError as error:
        found = error
    everyone = [found]
    if env.world_size > 1:
        everyone *= env.world_size
        dist.all_gather_object(everyone, found)
    if failed := next(filter(None, everyone), None):
        raise failed


def as_known(error: ToolkitError) -> ToolkitError:
    """Return an error as one of a class that `error_from_text` rebuilds in any process."""
    kind = next((known for known in _TYPES if isinstance(error, known)), RunError)
    return error if type(error) is kind else kind(str(error))


def error_to_text(error: ToolkitError) -> str:
    """Format an error as `Name: message`, as torch's launcher writes exceptions."""
    return f"{type(error).__name__}: {error}"


def error_from_text(text: str) -> ToolkitError | None:
    """Rebuild an error of `as_known` from `Name: message`; None for other names."""
    kind, _, message = text.partition(": ")
    return next((error(message) for error in _TYPES if kind == error.__name__), None)


def finishes_within(seconds: float, work: Callable[[], None]) -> bool:
    """Run `work` in a thread; return whether it succeeded within `seconds`.

    For calls to the processes' store, whose clients wait forever once its server is stopped.
    """
    done = threading.Event()

    def run() -> None:
        with suppress(RuntimeError, dist.DistError):
            work()
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


def _announce(error: ToolkitError, processes: int) -> None:
    # A connection of its own: a waiting collective blocks the process group's.
    store = _get_default_store().clone()  # type: ignore[attr-defined]
    store.compare_set(_CAUSE, "", error_to_text(error))  # keeps an error announced before
    store.add(_KNOWN, 1)
    while store.add(_KNOWN, 0) < processes:
        time.sleep(_POLL_SECONDS)


# Limit before the first step, when compilers and file systems take long.
_START_SECONDS = 1800.0
_EVERY_SECONDS = 1.0
# A live process publishes every second: one silent for this long is stopped, or its host is cut off.
_SILENT_SECONDS = 15.0


@dataclass(frozen=True)
class Sign:
    """State that a process last published.

    Attributes:
        host: Name of its host.
        time: When it published this, in seconds since 1970, by its own clock.
        step: Number of steps that it has finished.
        doing: Current activity, as a participle: "training".
    """

    host: str
    time: float
    step: int
    doing: str


class HangWatchdog:
    """Watchdog: when a collective hangs, report which process is stuck and stop the run.

    Within the block a thread publishes this process's state every second. When this process has made no
    progress for `seconds`, the thread reads the states of all and ends this process with one line that names
    the processes that are silent, else those that are behind. When another process has announced an error
    (`announce_failure`), the thread ends this process with the same error.
    """

    def __init__(self, env: DistEnv, seconds: float) -> None:
        """Watch the processes of `env`; a single process is not watched.

        Args:
            env: This process's environment.
            seconds: Time without progress after which the run is stopped; until the first call of `at`
                at least 30 minutes.
        """
        self._env, self._seconds = env, seconds
        self._step, self._doing, self._moved = 0, "starting", time.monotonic()
        self._limit = max(seconds, _START_SECONDS)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alexnet-watch", daemon=True)

    def at(self, step: int, doing: str) -> None:
        """Record progress: after `step` steps this process begins an activity, such as "training"."""
        self._step, self._doing, self._moved, self._limit = step, doing, time.monotonic(), self._seconds

    def __enter__(self) -> "HangWatchdog":
        if self._env.world_size > 1:
            # A connection of its own: a waiting collective blocks the process group's.
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
                # The store belongs to process 0 or its launcher: the other states cannot be read.
                waited = f"others have waited for {self._limit:.0f} s; check that host"
                line = f"process 0 is silent, or its host cut off: {waited}, then continue with --resume"
                self._end(RunError(line))

    def _is_late(self) -> bool:
        return time.monotonic() - self._moved > self._limit

    def _publish(self) -> None:
        sign = Sign(socket.gethostname(), time.time(), self._step, self._doing)
        self._store.set(_key(self._env.rank), msgspec.json.encode(sign))
        if self._store.check([_CAUSE]):
            self._store.add(_KNOWN, 1)
            text = self._store.get(_CAUSE).decode()
            self._end(error_from_text(text) or RunError(text))

    def _give_up(self) -> None:
        before = self._read()
        until = time.monotonic() + _SILENT_SECONDS  # a live process publishes again meanwhile
        while time.monotonic() < until and not self._ended.wait(_EVERY_SECONDS):
            self._publish()  # the others may be checking too, and must not find this one silent
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
            return  # the block was left, without an error or with one of its own
        get_error_handler().record_exception(error)
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # no launcher would print it
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


# Activities in which a process waits for no other; in the rest it may wait in a collective.
_ALONE = ("waiting for data", "saving")


def describe_hang(rank: int, signs: dict[int, Sign], silent: list[int], seconds: float) -> str:
    """Describe which processes the others wait for.

    Named are the silent ones; else those with the fewest steps, of which only those that wait for no other,
    if any. Where that is true of all, or of none among equal steps, no process is named.

    Args:
        rank: Rank of this process.
        signs: Rank → last state, of all processes that have published one.
        silent: Ranks that no longer publish.
        seconds: Time without progress.

    Returns:
        One line for the user, or "" where `rank` itself is one of those named.
    """
    late, state = silent, "silent"
    if not silent:
        least = min(sign.step for sign in signs.values())
        behind = [r for r, sign in signs.items() if sign.step == least]
        late, state = [r for r in behind if signs[r].doing in _ALONE] or behind, "behind"
        if len(late) == len(signs):
            late = []
    if rank in late:
        return ""
    if not late:
        activities = " or ".join(sorted({sign.doing for sign in signs.values()}))
        return (
            f"no process has made progress for {seconds:.0f} s since update {signs[rank].step:,}, and none "
            f"is behind: all are {activities}; check the network between them and the data's file system, "
            "then continue with --resume"
        )
    named = ", ".join(f"process {r} on {signs[r].host}" for r in late)
    one = signs[late[0]]
    last = "last seen" if state == "silent" else "still"
    return (
        f"{named} {'are' if len(late) > 1 else 'is'} {state}: {last} {one.doing} after update {one.step:,}, "
        f"while others have waited for {seconds:.0f} s; check that host, then continue with --resume"
    )


def _key(rank: int) -> str:
    return f"alexnet-watch/{rank}"


# Delay of the other processes' exit, so that process 0 prints the difference first.
_ECHO_SECONDS = 5.0


def refuse_unlike(env: DistEnv, facts: dict[str, str]) -> None:
    """Refuse processes whose versions, data or the like differ from process 0's.

    Args:
        env: This process's environment.
        facts: Name → value of what must be the same in all processes.

    Raises:
        UsageError: In process 0, for the first process that differs: its rank and host, and what differs.
        SystemExit: In the other processes of a launcher, 5 s later, as process 0 prints the message for all.
    """
    if env.world_size == 1:
        return
    everyone: list[tuple[str, dict[str, str]]] = [("", {})] * env.world_size
    dist.all_gather_object(everyone, (socket.gethostname(), facts))
    first = everyone[0][1]
    for rank, (host, found) in enumerate(everyone):
        unlike = [name for name in first if found.get(name) != first[name]]
        if unlike and not env.is_first and launched_outside():
            time.sleep(_ECHO_SECONDS)  # process 0 prints the message for all
            sys.exit(UsageError.exit_code)
        if unlike:
            differences = "; ".join(f"{name} {found.get(name)}, process 0 {first[name]}" for name in unlike)
            raise UsageError(
                f"process {rank} on {host} has {differences}: all hosts need the same versions, data, recipe "
                "and run folder"
            )
