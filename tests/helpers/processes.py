"""Functions that tests run in spawned processes; this module imports little, so that they start quickly."""

import atexit
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from helpers.entries import Recorder
from pipeline.errors import RunError, UsageError
from trainer.distributed import consensus, failures
from trainer.distributed.consensus import Consensus
from trainer.distributed.env import DistEnv, gather_objects
from trainer.distributed.failures import error_to_text, raise_together, refuse_unlike
from trainer.evaluation.metrics import Metrics
from trainer.models.classifier import Classifier
from trainer.training import trainer, validation
from trainer.training.options import TrainJob


def describe(env: DistEnv, *args: object) -> tuple[object, ...]:
    """Environment and arguments of this process, and sums and ranks gathered from all."""
    total = torch.tensor([float(env.rank + 1)])
    if env.world_size > 1:
        dist.all_reduce(total)
    return env, args, total.item(), gather_objects(env.rank, env)


def refuse(env: DistEnv, marks: Path) -> None:
    """Every process raises UsageError, which a restart cannot help."""
    (marks / f"{env.rank}-{env.restarts}").touch()
    dist.barrier()
    raise UsageError("recipe: of another kind: not usable")


def fail(env: DistEnv, rank: int) -> None:
    """One rank raises RunError while the others wait for it, and exits a second after leaving the group."""
    if env.rank == rank:
        if env.world_size > 1:
            dist.destroy_process_group()
            atexit.register(time.sleep, 1.0)
        raise RunError("the disk is full")
    dist.barrier()


def stumble(env: DistEnv, rank: int) -> None:
    """One rank raises KeyError while the others wait for it."""
    if env.rank == rank:
        raise KeyError("a bug")
    dist.barrier()


def die(env: DistEnv, rank: int) -> int:
    """One rank is killed in the first try while the others wait for it; return the number of restarts."""
    if env.rank == rank and not env.restarts:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    return env.restarts


def wish(
    env: DistEnv, wishes: dict[int, tuple[int, int]], calls: int, step_seconds: dict[int, float]
) -> list[list[list[bool]]]:
    """Call Consensus on two flags `calls` times; return all ranks' results.

    Args:
        env: This process's environment.
        wishes: Rank → (call, flag): the rank sets the flag from this call until it is granted.
        calls: Number of calls.
        step_seconds: Rank → time between two calls, by the clock that Consensus sees.
    """
    clock = [0.0]
    consensus.monotonic = lambda: clock[0]
    shared, results = Consensus(env), []
    at, which = wishes.get(env.rank, (calls + 1, 0))
    for call in range(1, calls + 1):
        clock[0] += step_seconds[env.rank]
        waits = call >= at and not any(result[which] for result in results[at - 1 :])
        results.append(shared(*(waits and flag == which for flag in range(2))))
    shared.finish()
    return gather_objects(results, env)


def hang(env: DistEnv, rank: int, how: str) -> int:
    """One rank stops within the fourth step, or sleeps before it, unless it was restarted.

    The others' watchdogs act after three silent seconds, and not before the rank has stopped; its own does
    not act. Returns the number of restarts.
    """
    failures._SILENT_SECONDS, failures._EVERY_SECONDS = 3.0, 0.1
    limit = 1000.0 if env.rank == rank else 4.0 if how == "stop" else 1.0
    with failures.HangWatchdog(env, limit) as seen:
        for step in range(10):
            seen.at(step, "waiting for data")
            bad = env.rank == rank and step == 3 and not env.restarts
            if bad and how == "sleep":
                time.sleep(1000)
            seen.at(step, "training")
            if bad:
                time.sleep(1)  # its heartbeat has been sent
                os.kill(os.getpid(), signal.SIGSTOP)
            dist.barrier()
    return env.restarts


def unlike(env: DistEnv) -> None:
    """The second process reports another version of torch."""
    refuse_unlike(env, {"torch": "2.12" if env.rank else "2.13", "numpy": "2"})


def fail_together(env: DistEnv, folder: Path) -> None:
    """The second process fails; each writes the error that it gets to a file."""

    def work() -> None:
        if env.rank == 1:
            raise UsageError("process 1 cannot")

    try:
        raise_together(work, env)
    except UsageError as error:
        (folder / str(env.rank)).write_text(error_to_text(error))
        dist.barrier()
        raise


def page_faults(env: DistEnv) -> int:
    """Count page faults while ten tensors of 64 MB are made and freed, after malloc has settled."""
    for _ in range(20):
        torch.ones(16, 1024, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@dataclass
class Trained:
    """What a rank has after a run.

    Attributes:
        compiled: Whether its network is compiled.
        broadcasts: Whether DDP sends buffers in every forward pass.
        shared: Buffers, flattened, before and after each time that all share them.
        validated: Metrics of each validation.
        notes: Log messages.
    """

    compiled: bool = False
    broadcasts: bool = True
    shared: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    validated: list[Metrics] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def train_with_one_broken_compiler(env: DistEnv, job: TrainJob) -> list[Trained]:
    """Train where only rank 1's compiler fails; return what all ranks have."""
    found, recorder = Trained(), Recorder()
    share_buffers, evaluate = trainer.share_buffers, validation.evaluate

    def compile_(self: Classifier, **_: object) -> None:
        def call(*inputs: Tensor) -> Tensor:
            if env.rank == 1:
                raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler here"), None)
            return self.forward(*inputs)

        self._compiled_call_impl = call

    def sharing(model: nn.Module) -> None:
        before = torch.cat([buffer.flatten().float() for buffer in model.buffers()])
        share_buffers(model)
        found.shared.append((before, torch.cat([buffer.flatten().float() for buffer in model.buffers()])))

    def evaluating(*arguments: Any, **options: Any) -> Metrics:
        found.validated.append(evaluate(*arguments, **options))
        return found.validated[-1]

    Classifier.compile, validation.evaluate = compile_, evaluating
    trainer.share_buffers = validation.share_buffers = sharing
    with failures.HangWatchdog(env, 600) as watchdog:
        one = trainer.Trainer(env, job, [recorder] if env.is_first else [], watchdog)
        one.run()
    found.compiled = one.classifier._compiled_call_impl is not None
    found.broadcasts, found.notes = one.model.broadcast_buffers, recorder.notes
    return gather_objects(found, env)
