"""Kill training in mid-epoch, resume it elsewhere, and compare it with a run that was never stopped.

    python benchmarks/kills.py --work /tmp/kills

Two runs of `alexnet-train` are killed with SIGKILL --kills times each, all processes or only the last one:

- moving: in float64 and without dropout; each time it goes on with another number of processes, and now and
  then with the other backend. Its steps must see the very images, pixel by pixel, that those of a run of one
  process see, and its weights must end within 1e-9 of that run's.
- staying: `alexnet` as it is, on two processes; its weights and optimizer must end with the very same bits.

Exits with 1 where something differs.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common
import psutil
import torch
from common import BenchmarkError
from recorded_train import FOLDER, WITHOUT_DROPOUT

from pipeline.loader.placement import has_dali

BATCH = 24  # which 1, 2, 3 and 4 processes divide
PROCESSES = (1, 2, 4, 1, 3, 2, 3, 4, 2, 1, 4, 3)
"""Processes of a moving run, in turn; no two neighbors are equal."""

_ONE_OF = 3  # at every third kill only one process dies
_SAVED_EVERY = 2
_TOLERANCE = 1e-9
_DEADLINE = 300.0

Images = tuple[tuple[int, int], ...]
"""Position and checksum of each image of a global batch."""


class Start(NamedTuple):
    """How a run is started or resumed."""

    processes: int
    backend: str

    def __str__(self) -> str:
        return f"{self.processes} × {self.backend}"


class Seen(NamedTuple):
    """What the steps of one start saw.

    Attributes:
        batches: Step → global batch; a step that was not begun by all processes is left out.
        pids: Rank → process id.
        epoch_steps: Steps of an epoch; 0 before the first step.
    """

    batches: dict[int, Images]
    pids: dict[int, int]
    epoch_steps: int

    @property
    def last(self) -> int:
        return max(self.batches, default=-1)


class Part(NamedTuple):
    """A part of a run: from one start to its kill, or to the run's end.

    Attributes:
        start: Processes and backend.
        seen: What its steps saw.
        killed: "all" or "one" process; "" where it ran to the end.
        seconds: From the start to the first step.
    """

    start: Start
    seen: Seen
    killed: str
    seconds: float

    @property
    def begun(self) -> int:
        return min(self.seen.batches)


@dataclass(frozen=True)
class Run:
    """A training run that is killed now and then.

    Attributes:
        data: The dataset.
        out: The run's folder.
        settings: Settings of the recipe.
        dropout: Whether it has dropout.
    """

    data: Path
    out: Path
    settings: Sequence[str]
    dropout: bool

    def train(self, starts: Sequence[Start], kill_at: Sequence[int] = ()) -> list[Part]:
        """Train to the end; kill all starts but the last, each as it makes its step of `kill_at`."""
        common.fresh(self.out)
        ends: list[int | None] = [*kill_at, None]
        return [
            self._part(number, start, at) for number, (start, at) in enumerate(zip(starts, ends, strict=True))
        ]

    def _part(self, number: int, start: Start, kill_at: int | None) -> Part:
        records = self.out.with_name(f"{self.out.name}-records") / str(number)
        common.fresh(records).mkdir(parents=True)
        began = time.monotonic()
        with self._started(start, records, resume=number > 0) as process:
            seen = _wait(process, records, start.processes, 0)
            seconds = time.monotonic() - began
            killed = ""
            if kill_at is not None:
                seen = _wait(process, records, start.processes, kill_at)
                one = number % _ONE_OF == _ONE_OF - 1 and start.processes > 1
                killed = _kill(process, seen, one=one)
            elif process.wait(_DEADLINE):
                raise BenchmarkError(f"{start}: ended with {process.returncode}: {_tail(records)}")
        return Part(start, _seen(records, start.processes), killed, seconds)

    @contextmanager
    def _started(self, start: Start, records: Path, *, resume: bool) -> Iterator[subprocess.Popen[bytes]]:
        sets = [part for setting in self.settings for part in ("--set", setting)]
        command = [
            *(sys.executable, str(common.HERE / "recorded_train.py"), str(self.data), "--out", str(self.out)),
            *(("--resume",) if resume else ("--recipe", "paper", *sets)),
            *("--cpus", str(start.processes), "--backend", start.backend),
            *("--checkpoint-steps", str(_SAVED_EVERY)),
        ]
        variables = {FOLDER: str(records)} | ({} if self.dropout else {WITHOUT_DROPOUT: "1"})
        with (records / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | variables, start_new_session=True
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> int:
    options = _options()
    common.print_facts(common.versions("alexnet-toolkit", "torch", "numpy", "nvidia-dali-cuda130"))
    with common.work_folder(options.work) as work:
        common.fresh(work / "images")
        common.run(
            [common.tool("alexnet-prep"), "demo", str(work / "images"), "--images", str(options.images)]
        )
        shard = ["shard", str(work / "images"), str(common.fresh(work / "data")), "--size", "72"]
        common.run([common.tool("alexnet-prep"), *shard])
        kinds = {"moving": _moving, "staying": _staying}
        found = {name: kinds[name](work, options) for name in options.runs}
    common.save_json(options.json, **found)
    met = all(facts["met"] for facts in found.values())
    print(f"\n{common.judged(met)}")
    return int(not met)


def _options() -> Any:
    options = common.parser(__doc__, "work", "json")
    options.add_argument("--kills", type=int, default=12, help="kills of each run")
    options.add_argument(
        "--images", type=int, default=640, help="drawn images, of which a fifth is for validation"
    )
    options.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    options.add_argument("runs", nargs="*", default=["moving", "staying"], help="moving, staying")
    return common.checked(options)


def _settings(options: Any, *more: str) -> list[str]:
    small = ("crop=64", "width=0.1", f"batch_size={BATCH}", "compile=false", f"epochs={options.epochs}")
    return [*small, *more]


def _moving(work: Path, options: Any) -> dict[str, Any]:
    """Compare a run that moves between processes and backends with one of a single process."""
    settings = _settings(options, "precision=float64")
    whole = Run(work / "data", work / "moving-whole", settings, dropout=False)
    cut = Run(work / "data", work / "moving", settings, dropout=False)
    backends = ("threads", "dali", "dali", "threads") if has_dali() else ("threads",)
    starts = [
        Start(PROCESSES[number % len(PROCESSES)], backends[number % len(backends)])
        for number in range(options.kills + 1)
    ]
    (reference,) = whole.train([Start(1, "threads")])
    parts = cut.train(starts, _kill_steps(reference.seen, options.kills))
    same = _same_batches(parts, reference.seen)
    difference = _difference(whole.out, cut.out)
    _print("moving: float64, no dropout", parts, reference.seen)
    print(f"global batches as of one never stopped: {'all' if same else 'NO'}, {len(reference.seen.batches)}")
    print(f"largest relative difference of a weight: {difference:.1e}, at most {_TOLERANCE:.0e}")
    return {
        "met": same and difference <= _TOLERANCE,
        "same_batches": same,
        "difference": difference,
    } | _facts(parts)


def _staying(work: Path, options: Any) -> dict[str, Any]:
    """Compare a killed run with dropout with one that was not, on as many processes."""
    settings, start = _settings(options), Start(2, "threads")
    whole = Run(work / "data", work / "staying-whole", settings, dropout=True)
    cut = Run(work / "data", work / "staying", settings, dropout=True)
    (reference,) = whole.train([start])
    parts = cut.train([start] * (options.kills + 1), _kill_steps(reference.seen, options.kills))
    same = _same_batches(parts, reference.seen)
    equal = _same_bits(whole.out, cut.out)
    _print("staying: float32, dropout", parts, reference.seen)
    print(f"global batches as of one never stopped: {'all' if same else 'NO'}, {len(reference.seen.batches)}")
    print(f"weights and optimizer equal bit for bit: {'yes' if equal else 'NO'}")
    return {"met": same and equal, "same_batches": same, "same_bits": equal} | _facts(parts)


def _kill_steps(whole: Seen, kills: int) -> list[int]:
    """Spread kills evenly over the steps of a run, at least two steps away from the ends of epochs."""
    steps = len(whole.batches)
    even = [steps * (number + 1) // (kills + 1) for number in range(kills)]
    room = whole.epoch_steps - 4
    if room < 1:
        raise BenchmarkError(f"an epoch has {whole.epoch_steps} steps; use more --images")
    return [
        at // whole.epoch_steps * whole.epoch_steps + 2 + min(at % whole.epoch_steps, room) for at in even
    ]


def _seen(records: Path, processes: int) -> Seen:
    """Read what the processes of a start have recorded so far."""
    ranks: dict[int, dict[int, Images]] = {}
    pids, epoch_steps = {}, 0
    for file in records.glob("*.jsonl"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            facts = json.loads(line)
            images = tuple(zip(facts["positions"], facts["images"], strict=True))
            ranks.setdefault(facts["step"], {})[facts["rank"]] = images
            pids[facts["rank"]], epoch_steps = facts["pid"], facts["epoch_steps"]
    batches = {
        step: tuple(image for rank in range(processes) for image in parts[rank])
        for step, parts in sorted(ranks.items())
        if len(parts) == processes
    }
    return Seen(batches, pids, epoch_steps)


def _wait(process: subprocess.Popen[bytes], records: Path, processes: int, step: int) -> Seen:
    """Wait until all processes have begun a step of the run, or a later one."""
    deadline = time.monotonic() + _DEADLINE
    while True:
        seen = _seen(records, processes)
        if seen.last >= step:
            return seen
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError(f"step {step} was not reached: {_tail(records)}")
        time.sleep(0.01)


def _kill(process: subprocess.Popen[bytes], seen: Seen, *, one: bool) -> str:
    """Kill all processes, or the last one alone, upon which the launcher ends the others."""
    if one:
        os.kill(seen.pids[max(seen.pids)], signal.SIGKILL)
        if process.wait(_DEADLINE) != 1:
            raise BenchmarkError(f"a run that lost a process ended with {process.returncode}, not 1")
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pid in seen.pids.values():
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    return "one" if one else "all"


def _tail(records: Path) -> str:
    return (records / "log").read_text(errors="replace")[-2000:]


def _same_batches(parts: Sequence[Part], whole: Seen) -> bool:
    """Whether all parts but the first go on from a checkpoint, and see in order what a whole run sees."""
    done: dict[int, Images] = {}
    for number, part in enumerate(parts):
        steps = [*part.seen.batches]
        goes_on = 0 < part.begun <= len(done) if number else part.begun == 0
        if not goes_on or steps != [*range(part.begun, part.seen.last + 1)]:
            return False
        done |= part.seen.batches
        if any(part.seen.batches[step] != whole.batches.get(step) for step in steps):
            return False
    return len(done) == len(whole.batches)


def _tensors(out: Path, *names: str) -> dict[str, torch.Tensor]:
    content = torch.load(out / "last.pt", weights_only=True)
    found = {}
    stack = [(name, content[name]) for name in names]
    while stack:
        name, value = stack.pop()
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            stack += [(f"{name}.{key}", inner) for key, inner in value.items()]
    return found


def _difference(one: Path, other: Path) -> float:
    """Return the largest difference of a weight, as a share of the largest weight of its tensor."""
    a, b = (_tensors(out, "model") for out in (one, other))
    if a.keys() != b.keys():
        return math.inf
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a)


def _same_bits(one: Path, other: Path) -> bool:
    a, b = (_tensors(out, "model", "optimizer") for out in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _facts(parts: Sequence[Part]) -> dict[str, Any]:
    rows = [
        {"processes": part.start.processes, "backend": part.start.backend, "begun": part.begun}
        | {"last": part.seen.last, "killed": part.killed, "seconds_to_first_step": part.seconds}
        for part in parts
    ]
    return {"parts": rows}


def _print(title: str, parts: Sequence[Part], whole: Seen) -> None:
    rows = []
    for number, part in enumerate(parts, 1):
        epoch, step = divmod(part.seen.last, whole.epoch_steps)
        where = f"{part.seen.last + 1} ({step + 1} of {whole.epoch_steps}, epoch {epoch + 1})"
        ends = f"{part.killed} killed" if part.killed else "finished"
        rows.append((str(number), str(part.start), str(part.begun + 1), where, ends, f"{part.seconds:.1f}"))
    header = ("start", "processes × backend", "first update", "last update", "end", "s to first update")
    print(f"\n{title}\n\n{common.markdown(header, rows)}\n")


if __name__ == "__main__":
    common.finish(main)
