"""The training run, from top to bottom.

Shapes: B local batch size, S side of the crop.
"""

from contextlib import nullcontext
from dataclasses import asdict
from time import monotonic
from typing import Any

import msgspec
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from pipeline.loader.loader import Batch
from pipeline.seeds import derive_seed
from pipeline.storage.atomic import remove_leftovers
from trainer.callbacks.base import Callback, Callbacks
from trainer.callbacks.profiler import profiler
from trainer.data import TrainData, validation_loader
from trainer.distributed.comm_hooks import Compression, check_compression
from trainer.distributed.consensus import Consensus
from trainer.distributed.env import DistEnv, all_most, all_sum, gather_objects, share_buffers
from trainer.distributed.failures import HangWatchdog, refuse_unlike
from trainer.distributed.stop_signals import StopSignals
from trainer.evaluation.evaluate import evaluate
from trainer.models.classifier import new_classifier
from trainer.optim.ema import Ema
from trainer.optim.lr_schedule import Schedule
from trainer.optim.optimizers import build_optimizer, check_layers, set_lrs
from trainer.runs import checkpoint, metrics_file, run_folder
from trainer.runs.async_writer import AsyncCheckpointer
from trainer.runs.records import EpochMetrics, Progress, Weights
from trainer.training import messages
from trainer.training.options import TrainJob, TrainResult
from trainer.training.precision import choose_precision
from trainer.training.progress import EpochTimer, Reading, RunningTotals, used_mb
from trainer.training.setup import local_batch_size, run_throwaway_step, wrap_ddp
from trainer.training.step import scaler_state, train_step

# Steps between two calls of `on_step`: often enough to watch, and it costs nothing measurable.
_REPORT_EVERY = 10


def train(env: DistEnv, job: TrainJob, callback: Callback) -> TrainResult:
    """Train a recipe on a dataset and keep the run in a folder.

    Every epoch ends with an evaluation, a line in metrics.jsonl, and the checkpoints `last.pt` and,
    where validation top-1 improved, `best.pt`. SIGTERM and SIGUSR1 stop the run after the step in progress,
    with a checkpoint.

    Args:
        env: This process's environment; all processes call this with the same job.
        job: Data, recipe, run folder and options.
        callback: Called with the run's progress on rank 0, and not on the others.

    Returns:
        How far the run came and how it ended.

    Raises:
        UsageError: Data, recipe, processes and run folder do not fit together.
        RunError: The loss is no longer finite, a shard is damaged, or the disk is full at the end.
    """
    callback = callback if env.is_first else Callbacks([])
    try:
        result = Trainer(env, job, callback).run()
    except Exception as error:
        callback.on_end("failed", str(error))
        raise
    callback.on_end(result.ending, result.line)
    return result


class Trainer:
    """One process's part of a training run."""

    def __init__(self, env: DistEnv, job: TrainJob, callback: Callback) -> None:
        """Build model, optimizer and loaders; nothing is written yet.

        Raises:
            UsageError: See `train`.
        """
        recipe = job.recipe
        self.env, self.job, self.recipe, self.callback = env, job, recipe, callback
        self.dataset = Dataset.open(job.data)
        self.batch_size = local_batch_size(recipe, env.world_size)
        check_compression(recipe, env.kind)
        self.precision = choose_precision(recipe, env.kind)
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        self.classifier = new_classifier(recipe, self.dataset).to(env.device)
        if recipe.channels_last:
            self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_layers(self.classifier.model, recipe)
        self.optimizer = build_optimizer(self.classifier.model, recipe)
        self.scaler = self.precision.new_scaler()
        self.schedule = Schedule(recipe)
        self.progress = Progress()
        self.totals = RunningTotals(env)
        self.train_data = TrainData(
            recipe,
            self.dataset,
            self.classifier,
            self.batch_size,
            env,
            job.loader_options,
            job.debugging.one_batch,
        )
        self.val = validation_loader(recipe, self.dataset, self.batch_size, env, job.loader_options)
        self.checkpointer = AsyncCheckpointer(job.out, job.saving.keep, callback.on_log)
        self.left_out = 0  # images of an epoch that another number or kind of processes began
        self.val_seconds = 0.0
        self.saved_at, self.saved_steps = monotonic(), 0

    def run(self) -> TrainResult:
        """Train until the last epoch, the limit of --steps or a signal to stop."""
        with (
            self.train_data,
            self.val,
            self.checkpointer,
            HangWatchdog(self.env, self.job.hang_seconds) as self.watchdog,
        ):
            saved = self._restore()
            self._make_model(saved)
            self.consensus = Consensus(self.env)
            trace = self.job.debugging.profile if self.env.is_first else None
            with StopSignals() as self.signals, profiler(trace) as self.profiler:
                for number in range(self.progress.epoch, self.recipe.epochs):
                    if reason := self._train_epoch(number) or self._end_epoch():
                        self.checkpointer.finish()
                        return messages.stopped(self.job, self.progress, reason)
                self.checkpointer.finish()
        return messages.finished(self.job, self.progress)

    def _restore(self) -> dict[str, Any] | None:
        """Create the run's folder, or restore the last checkpoint there and return its content."""
        job, recipe, env = self.job, self.recipe, self.env
        may_resume = job.resume == "auto" or all_most(env.restarts, env) > 0
        begun = job.resume == "must" or (may_resume and run_folder.is_run(job.out))
        if begun and env.is_first:
            remove_leftovers(job.out)
        saved, note = run_folder.read_last(job.out, recipe, self.dataset) if begun else (None, "")
        refuse_unlike(env, run_folder.common_facts(recipe, self.dataset, saved, env, self.precision.dtype))
        if saved:
            checkpoint.refuse_other_spec(saved, self.classifier.spec, job.out / checkpoint.LAST)
            self.classifier.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            self.progress = msgspec.convert(saved["progress"], Progress)
            self.saved_steps = self.progress.steps
            if self.scaler and saved["scaler"]:
                self.scaler.load_state_dict(saved["scaler"])
            rank = saved["ranks"][env.rank if run_folder.same_processes(saved, env) else 0]
            left_out = self.train_data.restore(rank, self.progress.epoch)
            self.left_out = int(all_most(left_out, env))  # where one cannot continue the epoch, none does
            self.totals.sums.add_(run_folder.sums_of(saved, env))
        else:
            self.train_data.epoch(0)  # refuses impossible batches and crops before anything is written
            if env.is_first:
                run_folder.create(job.out, recipe, self.dataset, env, over_unfinished=begun)
        self.callback.on_start(messages.facts(job, self.dataset, self.classifier, env, self.precision))
        difference = run_folder.difference(saved, env) if saved else ""
        for line in (self.precision.note, note, difference, messages.left_out(self.progress, self.left_out)):
            if line:
                self.callback.on_log(line)
        return saved

    def _make_model(self, saved: dict[str, Any] | None) -> None:
        """Compile the classifier, wrap it in DDP, and set the random generators."""
        recipe, env = self.recipe, self.env
        model = wrap_ddp(self.classifier, recipe, env, cuda_graphs=self.job.cuda_graphs)
        self.compression = (
            Compression(model, recipe, env.device) if isinstance(model, DistributedDataParallel) else None
        )
        run_throwaway_step(
            model, self.classifier, recipe, self.batch_size, env, self.precision, self.callback.on_log
        )
        self.model = model
        self.ema_weights = Ema(self.classifier, recipe.ema_decay) if recipe.ema_decay else None
        if self.ema_weights and saved:
            self.ema_weights.load_state_dict(saved["ema_weights"])
        torch.manual_seed(derive_seed(recipe.seed, "dropout", env.rank, self.progress.epoch))
        continued = saved is not None and run_folder.same_processes(saved, env)
        mine: dict[str, Any] = saved["ranks"][env.rank] if saved and continued else {}
        if mine:
            self.train_data.restore_generators(mine)
        if self.compression:
            self.compression.load_state_dict(mine.get("compression", {}))

    def _train_epoch(self, number: int) -> str:
        """Train the rest of an epoch; return why to stop within it, or ""."""
        loader = self.train_data.epoch(number)
        total = len(loader)
        # An epoch that other processes began cannot be continued: this run goes on with its evaluation.
        first = total - self.left_out // self.recipe.batch_size if self.left_out else loader.batch
        last_lr = self.schedule.lr(number + max(first - 1, 0) / total)
        self.now = now = EpochTimer(
            number, self.recipe.epochs, first, total, self.recipe.batch_size, last_lr, self.val_seconds
        )
        self.watchdog.at(self.progress.steps, "waiting for data")
        for step, batch in enumerate(() if self.left_out else now.wait.over(loader), first):
            self.watchdog.at(self.progress.steps, "training")
            self._update(step, batch)
            if step % _REPORT_EVERY == 0 or step + 1 == total:
                self._report(step + 1)
            at_limit = self.progress.steps == self.job.debugging.steps
            stop, save = self.consensus(bool(self.signals.name), self._minutes_are_over())
            due = self.job.saving.steps and self.progress.steps % self.job.saving.steps == 0
            if step + 1 < total and (stop or save or due or at_limit):
                self._save()
                if stop or at_limit:
                    return self._reason() if stop else "--steps"
            self.watchdog.at(self.progress.steps, "waiting for data")
        return ""

    def _update(self, step: int, batch: Batch) -> None:
        now = self.now
        now.lr = self.schedule.lr(now.epoch + step / now.total)
        set_lrs(self.optimizer, now.lr, self.recipe.stage_at(now.epoch))
        images = batch.images.to(self.env.device, torch.float32)
        labels = batch.labels.to(self.env.device, non_blocking=True)
        wanted = self.callback.wants_weights and step + 1 == now.total
        before = self._weights() if wanted else {}
        loss, correct = train_step(
            self.model, self.optimizer, images, labels, self.recipe, self.precision, self.scaler
        )
        if self.ema_weights:
            self.ema_weights.update()
        self.progress.steps += 1
        self.totals.add(loss, correct, self.batch_size, self.progress.steps)
        if line := self.profiler.step():
            self.callback.on_log(line)
        if wanted:
            after = self._weights()
            updates = {name: after[name] - before[name] for name in after}
            self.callback.on_weights(Weights(now.epoch + 1, self.progress.steps, after, updates))

    def _end_epoch(self) -> str:
        """Validate, write the epoch's metrics and save; return why to stop after it, or ""."""
        now, env = self.now, self.env
        loss_sum, correct, images = all_sum(self.totals.sums.clone()).tolist()
        self._refuse_diverged(self.totals.read())
        trained = now.seconds
        share_buffers(self.classifier)
        with self.ema_weights.in_place() if self.ema_weights else nullcontext():
            if self.ema_weights:
                share_buffers(self.classifier)
            metrics = evaluate(
                [self.classifier],
                self.val,
                env,
                self.precision.dtype,
                progress=lambda *_: self.watchdog.at(self.progress.steps, "validating"),
            )
            best = metrics.top1 > self.progress.best_top1
            if best and env.is_first:
                self.checkpointer.best(checkpoint.content_of(self.classifier))
        self.val_seconds = now.seconds - trained
        self.schedule.end_epoch(1.0 - metrics.top1)
        self.progress.epoch = now.epoch + 1
        self.progress.best_top1 = max(self.progress.best_top1, metrics.top1)
        row = EpochMetrics(
            epoch=now.epoch + 1,
            steps=self.progress.steps,
            lr=now.lr,
            train_loss=loss_sum / images,
            train_top1=correct / images,
            val_loss=metrics.loss,
            val_top1=metrics.top1,
            val_top5=metrics.top5,
            train_seconds=trained,
            val_seconds=self.val_seconds,
            images_per_second=0.0 if self.left_out else now.speed(now.total, trained),
            data_wait=now.wait.seconds / trained,
        )
        if env.is_first:
            metrics_file.add_metrics(self.job.out, row)
        self.left_out = 0
        self.totals.restart()
        self.train_data.epoch(now.epoch + 1)  # the checkpoint holds the start of the next epoch
        self._save()
        self.callback.on_epoch(row, self.recipe.epochs, best)
        if self.progress.epoch == self.recipe.epochs:
            return ""
        if self.progress.steps == self.job.debugging.steps:
            return "--steps"
        (stop,) = self.consensus.now(bool(self.signals.name))[:1]
        return self._reason() if stop else ""

    def _reason(self) -> str:
        return self.signals.name or "a signal to another process"

    def _save(self) -> None:
        """Write `last.pt`, with every rank's data position and generators, while training goes on.

        Raises:
            RunError: The loss or a weight is not finite; the checkpoint before stays the last.
        """
        self.watchdog.at(self.progress.steps, "saving")
        self._refuse_diverged(self.totals.read())
        if not all(bool(torch.isfinite(p).all()) for p in self.classifier.parameters()):
            raise self._diverged("weights are", self.progress.steps)
        mine = self.train_data.rank_state() | {"sums": self.totals.sums.tolist()}
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
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=scaler_state(self.scaler),
            ema_weights=self.ema_weights.state_dict() if self.ema_weights else {},
            progress=asdict(self.progress),
            machine=run_folder.machine(self.env),
            one_batch=self.job.debugging.one_batch,
            ranks=ranks,
        )
        self.checkpointer.last(content, self.progress.steps)

    def _minutes_are_over(self) -> bool:
        minutes = self.job.saving.minutes
        return bool(minutes) and self.env.is_first and monotonic() - self.saved_at > 60 * (minutes or 0)

    def _report(self, done: int) -> None:
        """Call `on_step`; on a GPU with totals some steps old, as reading the newest would make it wait."""
        reading = self.totals.peek() if self.env.is_first else None
        if reading is not None:
            self._refuse_diverged(reading)
            self.callback.on_step(self.now.row(done, self.progress.steps, reading, used_mb(self.env)))

    def _weights(self) -> dict[str, torch.Tensor]:
        parameters = self.classifier.model.named_parameters()
        return {name: value.detach().to("cpu", copy=True) for name, value in parameters}

    def _refuse_diverged(self, reading: Reading) -> None:
        if reading.diverged:
            raise self._diverged("loss is", int(reading.diverged))

    def _diverged(self, what: str, step: int) -> RunError:
        return messages.diverged(self.job, what, step, self.now.epoch + 1, self.saved_steps)
