"""The training run, from top to bottom.

An epoch (`Trainer._train_epoch`): batches → step → report → validate → checkpoint → rules to stop.
Shapes: B local batch size, S side of the crop.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from time import monotonic
from typing import Any

import msgspec
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.dataset import Dataset
from pipeline.loader.loader import Batch
from pipeline.seeds import derive_seed
from pipeline.storage.locks import TakenOverError
from trainer.callbacks.base import Callback
from trainer.callbacks.profiler import new_profiler
from trainer.data import TrainData, first_fetch
from trainer.distributed.comm_hooks import Compression
from trainer.distributed.consensus import Consensus
from trainer.distributed.env import DistEnv, all_most, all_sum, gather_objects, share_buffers
from trainer.distributed.failures import HangWatchdog, refuse_unlike
from trainer.distributed.stop_signals import StopSignals
from trainer.optim.ema import Ema
from trainer.optim.lr_schedule import Schedule
from trainer.optim.optimizers import build_optimizer, set_lrs
from trainer.precision import choose_precision
from trainer.runs import checkpoint, metrics_file, output, run_folder
from trainer.runs.async_writer import AsyncCheckpointer
from trainer.runs.records import MetricsRow, Progress, RowKind, Weights
from trainer.training import messages
from trainer.training.checks import check_job
from trainer.training.options import TrainJob, TrainResult
from trainer.training.progress import EpochTimer, MemoryUse, Reading, RunningTotals
from trainer.training.setup import build_classifier, run_throwaway_step, wrap_ddp
from trainer.training.step import train_step
from trainer.training.validation import Validator

# Steps between two calls of `on_step`: often enough to watch, and it costs nothing measurable.
_REPORT_EVERY = 10


def train(env: DistEnv, job: TrainJob, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a recipe on a dataset and keep the run in a folder.

    Every epoch ends with an evaluation, a line in metrics.jsonl, and the checkpoints `last.pt` and,
    where validation top-1 improved, `best.pt`; without a validation split it is `last.pt` alone. The job's
    `validation` adds evaluations within epochs, and may end the run. SIGTERM and SIGUSR1 stop the run after
    the step in progress, with a checkpoint.

    Args:
        env: This process's environment; all processes call this with the same job.
        job: Data, recipe, run folder and options.
        callbacks: Called with the run's progress on rank 0, and not on the others.

    Returns:
        How far the run came and how it ended.

    Raises:
        UsageError: Data, recipe, processes and run folder do not fit together.
        RunError: The loss is no longer finite, a shard is damaged, a GPU is out of memory, or the disk is
            full at the end.
    """
    callbacks = callbacks if env.is_first else ()
    try:
        with HangWatchdog(env, job.hang_seconds) as watchdog, messages.short_of_memory(job, env):
            result = Trainer(env, job, callbacks, watchdog).run()
    except TakenOverError:
        raise  # the folder is another process's now: callbacks would write there how this one ended
    except Exception as error:
        for callback in callbacks:
            callback.on_end("failed", str(error))
        raise
    for callback in callbacks:
        callback.on_end(result.ending, result.line)
    return result


class Trainer:
    """One process's part of a training run."""

    def __init__(
        self, env: DistEnv, job: TrainJob, callbacks: Sequence[Callback], watchdog: HangWatchdog
    ) -> None:
        """Check the job and build model, optimizer and loaders; nothing is written yet.

        Args:
            env: This process's environment.
            job: Data, recipe, run folder and options.
            callbacks: Called with the run's progress.
            watchdog: Told what this process is doing.

        Raises:
            UsageError: See `train`.
        """
        recipe = job.recipe
        self.env, self.job, self.recipe, self.callbacks = env, job, recipe, callbacks
        self.dataset = Dataset.open(job.data)
        self.batch_size = check_job(job, self.dataset, env.kind, env.world_size)
        self.precision = choose_precision(recipe, env.kind)
        precision = self.precision.dtype
        refuse_unlike(env, run_folder.common_facts(recipe, self.dataset, job.validation, env, precision))
        self.classifier = build_classifier(recipe, self.dataset, env)
        self.optimizer = build_optimizer(self.classifier.model, recipe)
        self.scaler = self.precision.new_scaler(env.device)
        self.schedule = Schedule(recipe)
        self.model = wrap_ddp(self.classifier, recipe, env, cuda_graphs=job.cuda_graphs)
        self.compression: Compression | None = None
        if isinstance(self.model, DistributedDataParallel):
            self.compression = Compression(self.model, recipe, env.device)
        self.ema_weights = Ema(self.classifier, recipe.ema_decay) if recipe.ema_decay else None
        options, one_batch = job.loader_options, job.debugging.one_batch
        self.train_data = TrainData(
            recipe, self.dataset, self.classifier, self.batch_size, env, options, one_batch
        )
        self.validator = Validator(job, self.dataset, env, self.classifier, self.ema_weights)
        self.lock = output.new_lock(job.out)  # acquired by rank 0 alone, which writes the files
        self.checkpointer = AsyncCheckpointer(job.out, job.saving.keep, self.log, self.lock.confirm)
        self.watchdog = watchdog
        self.consensus = Consensus(env)
        self.signals = StopSignals()
        traced = job.debugging.profile if env.is_first else None
        self.profiler = new_profiler(traced, self.log) if traced else None
        self.progress = Progress()
        self.totals, self.memory = RunningTotals(env), MemoryUse(env)
        self.val_seconds = 0.0
        self.saved_at, self.saved_steps = monotonic(), 0

    def run(self) -> TrainResult:
        """Train until a rule of `_why_stop` ends the run."""
        with self.precision.training(), self.train_data, self.validator, self.lock, self.checkpointer:
            self._begin()
            with self.signals, self.profiler or nullcontext():
                reason = self._why_stop(asked=False)
                if not reason and (line := first_fetch(self.train_data.epoch(self.progress.epoch))):
                    self.log(line)
                while not reason:
                    reason = self._train_epoch()
                self.checkpointer.finish()
        return messages.result(self.job, self.progress, reason)

    def _begin(self) -> None:
        """Create the run's folder or restore its last checkpoint, and prepare the model for a first step."""
        job, recipe, env = self.job, self.recipe, self.env
        may_resume = job.resume == "auto" or all_most(env.restarts, env) > 0
        begun = job.resume == "must" or (may_resume and run_folder.is_run(job.out))
        if begun:
            output.resume(job.out, self.lock, env, self.log, take_over=job.take_over)
        saved, note = None, ""
        if begun:
            saved, note = run_folder.read_last(job.out, recipe, self.dataset, job.validation)
        refuse_unlike(env, {"checkpoint": f"of update {saved['progress']['steps']}" if saved else "none"})
        mine: dict[str, Any] = {}
        if saved:
            mine = self._restore(saved)
        else:
            self.train_data.epoch(0)  # refuses impossible settings before anything is written
            output.claim(job.out, self.lock, env, force=job.force, take_over=job.take_over)
            if env.is_first:
                run_folder.create(job.out, recipe, self.dataset, job.validation, env)
        facts = messages.facts(job, self.dataset, self.classifier, env, self.precision)
        for callback in self.callbacks:
            callback.on_start(facts)
        lines = [self.precision.note, note]
        if saved:
            lines += [run_folder.difference(saved, env), messages.dropped_errors(saved, env)]
        del saved  # up to 0.75 GB, which compiling needs more
        for line in lines:
            if line:
                self.log(line)
        run_throwaway_step(
            self.model, self.classifier, recipe, self.batch_size, env, self.precision, self.log
        )
        if self.compression:  # that step has changed its memory
            self.compression.load_state_dict(mine.get("compression", {}), self.progress.steps)

    def _restore(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Restore a checkpoint; return this rank's state, {} where other processes saved it."""
        checkpoint.refuse_other_spec(saved, self.classifier.spec, self.job.out / checkpoint.LAST)
        self.classifier.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema_weights:
            self.ema_weights.load_state_dict(saved["ema_weights"])
        self.progress = msgspec.convert(saved["progress"], Progress)
        self.saved_steps = self.progress.steps
        same = run_folder.same_processes(saved, self.env)
        self.train_data.load_state_dict(saved["data"], self.progress.epoch)
        self.totals.sums.add_(run_folder.sums_of(saved, self.env))
        return saved["ranks"][self.env.rank] if same else {}

    def log(self, line: str) -> None:
        """Call `on_log` of every callback with a line for the user."""
        for callback in self.callbacks:
            callback.on_log(line)

    def _train_epoch(self) -> str:
        """Train the rest of an epoch, validate and save; return why to stop, or "" to go on."""
        timer, batches = self._open_epoch()
        self.watchdog.at(self.progress.steps, "waiting for data")
        for step, batch in enumerate(batches, timer.first):
            self.watchdog.at(self.progress.steps, "training")
            last = step + 1 == timer.total
            before = self._weights() if last else {}
            self.lock.check()
            self._step(timer, step, batch)
            self._report(timer, step, before)
            if not last:
                if self.validator.is_due(self.progress):
                    row = self._validate(timer, "validation", step + 1)
                    for callback in self.callbacks:
                        callback.on_validation(row, self.recipe.epochs)
                reason = self._save_or_stop()
                if reason:
                    return reason
            self.watchdog.at(self.progress.steps, "waiting for data")
        row, best = self._end_epoch(timer)
        self._save()
        for callback in self.callbacks:
            callback.on_epoch(row, self.recipe.epochs, best)
        asked, _ = self.consensus.now(bool(self.signals.name), False)
        return self._why_stop(asked)

    def _open_epoch(self) -> tuple[EpochTimer, Iterable[Batch]]:
        """Return the timer of the epoch that comes next, and the batches left of it."""
        number, recipe = self.progress.epoch, self.recipe
        loader = self.train_data.epoch(number)
        total, done = len(loader), loader.batch
        timer = EpochTimer(
            epoch=number,
            epochs=recipe.epochs,
            first=done,
            total=total,
            batch_size=recipe.batch_size,
            lr=self.schedule.lr(number + max(done - 1, 0) / total),
            val_seconds=self.val_seconds,
            val_steps=self.job.validation.every_steps,
        )
        return timer, timer.batches(loader)

    def _step(self, timer: EpochTimer, step: int, batch: Batch) -> None:
        """Update the weights once, and their average."""
        timer.lr = self.schedule.lr(timer.epoch + step / timer.total)
        set_lrs(self.optimizer, timer.lr, self.recipe.stage_at(timer.epoch))
        # The generator's state is a function of the step, and needs no place in checkpoints.
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", timer.epoch, step, self.env.rank))
        images = self.classifier.inputs(batch.images)
        labels = batch.labels.to(self.env.device, non_blocking=True)
        loss, correct, overflowed = train_step(
            self.model, self.optimizer, images, labels, self.recipe, self.precision, self.scaler
        )
        self.progress.add_step(overflowed=overflowed)
        if overflowed:
            messages.refuse_overflows(self.job, self.progress, self.saved_steps)
            return
        if self.ema_weights:
            self.ema_weights.update()
        self.totals.add(loss, correct, self.batch_size, self.progress.steps)

    def _report(self, timer: EpochTimer, step: int, before: dict[str, torch.Tensor]) -> None:
        """Call `on_step` every ten steps, and `on_weights` after the last step of the epoch.

        On a GPU the totals are some steps old, because reading the newest would make it wait.

        Args:
            timer: The epoch's timer.
            step: The step that was made, counted from 0 in the epoch.
            before: Copy of the weights before this step; empty where no callback wants them.
        """
        if self.profiler:
            self.profiler.step()
        if before:
            after = self._weights()
            updates = {name: after[name] - before[name] for name in after}
            weights = Weights(timer.epoch + 1, self.progress.steps, after, updates)
            for callback in self.callbacks:
                if callback.wants_weights:
                    callback.on_weights(weights)
        due = step % _REPORT_EVERY == 0 or step + 1 == timer.total
        reading = self.totals.peek() if due and self.env.is_first else None
        if reading is not None and reading.images:
            self._refuse_diverged(reading)
            row = timer.row(step + 1, self.progress.steps, reading, self.memory.read())
            for callback in self.callbacks:
                callback.on_step(row)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Copy the weights to the CPU, for callbacks that want them; empty where none does."""
        if not any(callback.wants_weights for callback in self.callbacks):
            return {}
        parameters = self.classifier.model.named_parameters()
        return {name: value.detach().to("cpu", copy=True) for name, value in parameters}

    def _validate(self, timer: EpochTimer, kind: RowKind, done: int) -> MetricsRow:
        """Validate, unless the run does not, after `done` steps of the epoch; add a row to metrics.jsonl."""
        totals = all_sum(self.totals.sums.clone()).tolist()
        skipped = kind == "epoch" and not totals[-1]
        messages.refuse_overflows(self.job, self.progress, self.saved_steps, all_steps=skipped)
        self._refuse_diverged(self.totals.read(), self.classifier.parameters())
        with timer.validating():
            metrics = self.validator.measure(lambda: self.watchdog.at(self.progress.steps, "validating"))
        if metrics:
            self.progress.add_validation(metrics.top1)
            self.val_seconds = timer.val_seconds
        row = timer.metrics_row(kind, done, self.progress, totals, metrics)
        if self.env.is_first:
            self.lock.confirm()
            metrics_file.add_metrics(self.job.out, row)
        return row

    def _end_epoch(self, timer: EpochTimer) -> tuple[MetricsRow, bool]:
        """Validate at the end of an epoch, and go to the start of the next.

        Returns:
            The epoch's metrics, and whether validation top-1 is the best of all epochs so far.
        """
        row = self._validate(timer, "epoch", timer.total)
        if row.overflows:
            self.log(messages.overflows(row))
        best = row.val_top1 is not None and row.val_top1 > self.progress.best_top1
        if row.val_top1 is not None:
            self.schedule.end_epoch(1.0 - row.val_top1)
            self.progress.best_top1 = max(self.progress.best_top1, row.val_top1)
        if best and self.env.is_first:
            self.validator.best(self.checkpointer.best)
        self.progress.epoch, self.progress.overflows = self.progress.epoch + 1, 0
        self.totals.restart()
        self.train_data.epoch(self.progress.epoch)  # the checkpoint holds the start of the next epoch
        return row, best

    def _save_or_stop(self) -> str:
        """Save within an epoch where it is time to or the run stops; return why it stops, or ""."""
        saving, done = self.job.saving, self.progress.steps
        late = bool(saving.minutes) and monotonic() - self.saved_at > 60 * (saving.minutes or 0)
        asked, save = self.consensus(bool(self.signals.name), late and self.env.is_first)
        reason = self._why_stop(asked)
        if reason or save or (saving.steps and done % saving.steps == 0):
            self._refuse_diverged(self.totals.read(), self.classifier.parameters())
            self._save()
        return reason

    def _why_stop(self, asked: bool) -> str:
        """Return why to stop here, in all processes alike, or "" to go on.

        Args:
            asked: Whether a process got a signal to stop, as all have agreed.
        """
        if self.progress.epoch == self.recipe.epochs:
            return "finished"
        if self.job.debugging.steps and self.progress.steps >= self.job.debugging.steps:
            return "--max-steps"
        if self.validator.is_hopeless(self.progress):
            return "--patience"
        return (self.signals.name or "a signal to another process") if asked else ""

    def _save(self) -> None:
        """Write `last.pt` while training goes on."""
        self.watchdog.at(self.progress.steps, "saving")
        share_buffers(self.classifier)
        mine: dict[str, Any] = {"sums": self.totals.sums.tolist()}
        if self.compression:
            mine["compression"] = self.compression.state_dict()
        ranks = gather_objects(mine, self.env)
        self.saved_at, self.saved_steps = monotonic(), self.progress.steps
        if not self.env.is_first:
            return
        content = checkpoint.content_of(
            self.classifier,
            recipe=self.recipe.to_toml(),
            dataset=self.dataset.fingerprint,
            validation=asdict(self.job.validation),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler else {},
            ema_weights=self.ema_weights.state_dict() if self.ema_weights else {},
            progress=asdict(self.progress),
            machine=run_folder.machine(self.env),
            one_batch=self.job.debugging.one_batch,
            data=self.train_data.state_dict(),
            ranks=ranks,
        )
        self.checkpointer.last(content, self.progress.steps)

    def _refuse_diverged(self, reading: Reading, weights: Iterable[torch.Tensor] = ()) -> None:
        """Raise RunError where a loss of the epoch or one of the `weights` is not finite."""
        what, step = "loss is", int(reading.diverged)
        if not step and not all(bool(torch.isfinite(weight).all()) for weight in weights):
            what, step = "weights are", self.progress.steps
        if step:
            raise messages.diverged(self.job, what, step, self.progress.epoch + 1, self.saved_steps)
