"""The training run, from top to bottom.

Shapes: B batch of this process, S crop.
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
from trainer.callbacks.base import Reporter, Reporters
from trainer.callbacks.profiler import profiler
from trainer.data import Feed, validation_loader
from trainer.distributed.comm_hooks import Compression, check_compression
from trainer.distributed.consensus import Agreement, StopSignals
from trainer.distributed.env import World, all_most, all_sum, gather_objects, share_buffers
from trainer.distributed.failures import Watch, refuse_unlike
from trainer.evaluation.evaluate import evaluate
from trainer.models.classifier import new_classifier
from trainer.optim.ema import Ema
from trainer.optim.lr_schedule import Schedule
from trainer.optim.optimizers import build_optimizer, check_layers, set_rates
from trainer.runs import checkpoint, run_folder
from trainer.runs.async_writer import Saver
from trainer.runs.records import EpochRow, Progress, Weights
from trainer.training import messages
from trainer.training.options import Job, Outcome
from trainer.training.precision import arithmetic_of
from trainer.training.progress import Meter, Pace, Reading, used_mb
from trainer.training.setup import distribute, prime, share_of_batch
from trainer.training.step import scaler_state, train_step

# Often enough for a person, seldom enough to cost nothing.
_REPORT_EVERY = 10


def train(world: World, job: Job, reporter: Reporter) -> Outcome:
    """Train a recipe on a dataset and keep the run in a folder.

    Every epoch ends with an evaluation, a line in metrics.jsonl, and the checkpoints `last.pt` and,
    where validation top-1 improved, `best.pt`. SIGTERM and SIGUSR1 end the run after the update that is
    under way, with a checkpoint.

    Args:
        world: this process among all; all call this with the same job.
        job: what to train.
        reporter: told of the progress on rank 0.

    Raises:
        UsageError: data, recipe and run folder that do not fit together.
        RunError: the loss is no longer finite, a damaged shard, or a full disk at the end.
    """
    told = reporter if world.is_first else Reporters([])
    try:
        outcome = Trainer(world, job, told).run()
    except Exception as error:
        told.ended("failed", str(error))
        raise
    told.ended(outcome.ending, outcome.line)
    return outcome


class Trainer:
    """A run in one process."""

    def __init__(self, world: World, job: Job, reporter: Reporter) -> None:
        """Build everything; nothing is written yet.

        Raises:
            UsageError: as `train`.
        """
        recipe = job.recipe
        self.world, self.job, self.recipe, self.reporter = world, job, recipe, reporter
        self.dataset = Dataset.open(job.data)
        self.batch_size = share_of_batch(recipe, world.size)
        check_compression(recipe, world.kind)
        self.arithmetic = arithmetic_of(recipe, world.kind)
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        self.classifier = new_classifier(recipe, self.dataset).to(world.device)
        if recipe.channels_last:
            self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_layers(self.classifier.net, recipe)
        self.optimizer = build_optimizer(self.classifier.net, recipe)
        self.scaler = self.arithmetic.new_scaler()
        self.schedule = Schedule(recipe)
        self.progress = Progress()
        self.meter = Meter(world)
        self.feed = Feed(
            recipe,
            self.dataset,
            self.classifier,
            self.batch_size,
            world,
            job.feeding,
            job.debugging.one_batch,
        )
        self.val = validation_loader(recipe, self.dataset, self.batch_size, world, job.feeding)
        self.saver = Saver(job.out, job.saving.keep, reporter.note)
        self.left_out = 0  # images of a begun epoch that other processes began
        self.val_seconds = 0.0
        self.saved_at, self.saved_steps = monotonic(), 0

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop."""
        with self.feed, self.val, self.saver, Watch(self.world, self.job.hang_seconds) as self.watch:
            saved = self._restore()
            self._make_model(saved)
            self.agreement = Agreement(self.world)
            trace = self.job.debugging.profile if self.world.is_first else None
            with StopSignals() as self.signals, profiler(trace) as self.profiler:
                for number in range(self.progress.epoch, self.recipe.epochs):
                    if reason := self._train_epoch(number) or self._end_epoch():
                        self.saver.finish()
                        return messages.stopped(self.job, self.progress, reason)
                self.saver.finish()
        return messages.finished(self.job, self.progress)

    def _restore(self) -> dict[str, Any] | None:
        """Begin the run's folder, or go on from its last checkpoint, which is returned."""
        job, recipe, world = self.job, self.recipe, self.world
        again = job.resume == "auto" or all_most(world.restarts, world) > 0
        begun = job.resume == "must" or (again and run_folder.is_run(job.out))
        if begun and world.is_first:
            remove_leftovers(job.out)
        saved, note = run_folder.read_last(job.out, recipe, self.dataset) if begun else (None, "")
        refuse_unlike(
            world, run_folder.common_facts(recipe, self.dataset, saved, world, self.arithmetic.dtype)
        )
        if saved:
            checkpoint.refuse_other_spec(saved, self.classifier.spec, job.out / checkpoint.LAST)
            self.classifier.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            self.progress = msgspec.convert(saved["progress"], Progress)
            self.saved_steps = self.progress.steps
            if self.scaler and saved["scaler"]:
                self.scaler.load_state_dict(saved["scaler"])
            rank = saved["ranks"][world.rank if run_folder.same_processes(saved, world) else 0]
            left_out = self.feed.restore(rank, self.progress.epoch)
            self.left_out = int(all_most(left_out, world))  # where one cannot go on with an epoch, none does
            self.meter.sums.add_(run_folder.sums_of(saved, world))
        else:
            self.feed.epoch(0)  # refuses impossible batches and crops before anything is written
            if world.is_first:
                run_folder.create(job.out, recipe, self.dataset, world, over_unfinished=begun)
        self.reporter.started(messages.facts(job, self.dataset, self.classifier, world, self.arithmetic))
        difference = run_folder.difference(saved, world) if saved else ""
        for line in (self.arithmetic.note, note, difference, messages.left_out(self.progress, self.left_out)):
            if line:
                self.reporter.note(line)
        return saved

    def _make_model(self, saved: dict[str, Any] | None) -> None:
        """Compile, join the processes, and set the random generators."""
        recipe, world = self.recipe, self.world
        model = distribute(self.classifier, recipe, world, cuda_graphs=self.job.cuda_graphs)
        self.compression = (
            Compression(model, recipe, world.device) if isinstance(model, DistributedDataParallel) else None
        )
        prime(model, self.classifier, recipe, self.batch_size, world, self.arithmetic, self.reporter.note)
        self.model = model
        self.ema = Ema(self.classifier, recipe.ema) if recipe.ema else None
        if self.ema and saved:
            self.ema.load_state_dict(saved["ema"])
        torch.manual_seed(derive_seed(recipe.seed, "dropout", world.rank, self.progress.epoch))
        continued = saved is not None and run_folder.same_processes(saved, world)
        mine: dict[str, Any] = saved["ranks"][world.rank] if saved and continued else {}
        if mine:
            self.feed.restore_generators(mine)
        if self.compression:
            self.compression.load_state_dict(mine.get("compression", {}))

    def _train_epoch(self, number: int) -> str:
        """Train what is left of an epoch; return why to stop within it, or ""."""
        loader = self.feed.epoch(number)
        total = len(loader)
        # What other processes began, these cannot end: they go on from its evaluation.
        first = total - self.left_out // self.recipe.batch_size if self.left_out else loader.batch
        last_rate = self.schedule.rate(number + max(first - 1, 0) / total)
        self.now = now = Pace(
            number, self.recipe.epochs, first, total, self.recipe.batch_size, last_rate, self.val_seconds
        )
        self.watch.at(self.progress.steps, "waiting for data")
        for step, batch in enumerate(() if self.left_out else now.wait.over(loader), first):
            self.watch.at(self.progress.steps, "training")
            self._update(step, batch)
            if step % _REPORT_EVERY == 0 or step + 1 == total:
                self._report(step + 1)
            at_limit = self.progress.steps == self.job.debugging.steps
            stop, save = self.agreement(bool(self.signals.name), self._minutes_are_over())
            due = self.job.saving.steps and self.progress.steps % self.job.saving.steps == 0
            if step + 1 < total and (stop or save or due or at_limit):
                self._save()
                if stop or at_limit:
                    return self._reason() if stop else "--steps"
            self.watch.at(self.progress.steps, "waiting for data")
        return ""

    def _update(self, step: int, batch: Batch) -> None:
        now = self.now
        now.rate = self.schedule.rate(now.epoch + step / now.total)
        set_rates(self.optimizer, now.rate, self.recipe.stage_at(now.epoch))
        images = batch.images.to(self.world.device, torch.float32)
        labels = batch.labels.to(self.world.device, non_blocking=True)
        looked_at = self.reporter.wants_weights and step + 1 == now.total
        before = self._weights() if looked_at else {}
        loss, correct = train_step(
            self.model, self.optimizer, images, labels, self.recipe, self.arithmetic, self.scaler
        )
        if self.ema:
            self.ema.update()
        self.progress.steps += 1
        self.meter.add(loss, correct, self.batch_size, self.progress.steps)
        if written := self.profiler.step():
            self.reporter.note(written)
        if looked_at:
            after = self._weights()
            updates = {name: after[name] - before[name] for name in after}
            self.reporter.weights(Weights(now.epoch + 1, self.progress.steps, after, updates))

    def _end_epoch(self) -> str:
        """Validate, note the epoch and save; return why to stop after it, or ""."""
        now, world = self.now, self.world
        loss_sum, correct, images = all_sum(self.meter.sums.clone()).tolist()
        self._refuse_diverged(self.meter.read())
        trained = now.seconds
        share_buffers(self.classifier)
        with self.ema.in_place() if self.ema else nullcontext():
            if self.ema:
                share_buffers(self.classifier)
            metrics = evaluate(
                [self.classifier],
                self.val,
                world,
                self.arithmetic.dtype,
                progress=lambda *_: self.watch.at(self.progress.steps, "validating"),
            )
            best = metrics.top1 > self.progress.best_top1
            if best and world.is_first:
                self.saver.best(checkpoint.content_of(self.classifier))
        self.val_seconds = now.seconds - trained
        self.schedule.end_epoch(1.0 - metrics.top1)
        self.progress.epoch = now.epoch + 1
        self.progress.best_top1 = max(self.progress.best_top1, metrics.top1)
        row = EpochRow(
            epoch=now.epoch + 1,
            steps=self.progress.steps,
            rate=now.rate,
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
        if world.is_first:
            run_folder.add_metrics(self.job.out, row)
        self.left_out = 0
        self.meter.restart()
        self.feed.epoch(now.epoch + 1)  # so that what is saved is the start of the next
        self._save()
        self.reporter.epoch(row, self.recipe.epochs, best)
        if self.progress.epoch == self.recipe.epochs:
            return ""
        if self.progress.steps == self.job.debugging.steps:
            return "--steps"
        (stop,) = self.agreement.now(bool(self.signals.name))[:1]
        return self._reason() if stop else ""

    def _reason(self) -> str:
        return self.signals.name or "a signal to another process"

    def _save(self) -> None:
        """Write `last.pt`, with every rank's place and generators, while the training goes on.

        Raises:
            RunError: the weights are no longer numbers: what was saved before stays the last.
        """
        self.watch.at(self.progress.steps, "saving")
        self._refuse_diverged(self.meter.read())
        if not all(bool(torch.isfinite(p).all()) for p in self.classifier.parameters()):
            raise self._diverged("weights are", self.progress.steps)
        mine = self.feed.rank_state() | {"sums": self.meter.sums.tolist()}
        if self.compression:
            mine["compression"] = self.compression.state_dict()
        ranks = gather_objects(mine, self.world)
        self.saved_at, self.saved_steps = monotonic(), self.progress.steps
        if not self.world.is_first:
            return
        content = checkpoint.content_of(
            self.classifier,
            recipe=self.recipe.to_toml(),
            dataset=self.dataset.fingerprint,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=scaler_state(self.scaler),
            ema=self.ema.state_dict() if self.ema else {},
            progress=asdict(self.progress),
            machine=run_folder.machine(self.world),
            one_batch=self.job.debugging.one_batch,
            ranks=ranks,
        )
        self.saver.last(content, self.progress.steps)

    def _minutes_are_over(self) -> bool:
        minutes = self.job.saving.minutes
        return bool(minutes) and self.world.is_first and monotonic() - self.saved_at > 60 * (minutes or 0)

    def _report(self, done: int) -> None:
        """Tell of the epoch so far; the loss is some updates old where reading it would make a GPU wait."""
        reading = self.meter.peek() if self.world.is_first else None
        if reading is not None:
            self._refuse_diverged(reading)
            self.reporter.step(self.now.row(done, self.progress.steps, reading, used_mb(self.world)))

    def _weights(self) -> dict[str, torch.Tensor]:
        parameters = self.classifier.net.named_parameters()
        return {name: value.detach().to("cpu", copy=True) for name, value in parameters}

    def _refuse_diverged(self, reading: Reading) -> None:
        if reading.diverged:
            raise self._diverged("loss is", int(reading.diverged))

    def _diverged(self, what: str, step: int) -> RunError:
        return messages.diverged(self.job, what, step, self.now.epoch + 1, self.saved_steps)
