"""Measure training steps per architecture, precision, compilation and memory layout, beside the limit.

    python benchmarks/train_step.py --arch alexnet --rounds 3
    python benchmarks/train_step.py --device cuda --batch 512

The step is the trainer's own (`trainer.training.step.train_step`) on a batch of noise, in a process whose
malloc keeps freed memory like the trainer's. The baseline is the same network with torch's
`nn.LocalResponseNorm`, not compiled, as in a script without this toolkit: in a separate process with malloc's
defaults, and, to separate the two effects, with freed memory kept. The arithmetic limit is the throughput of
a large matrix product in the same precision, measured in the same run, divided by the floating-point
operations of a forward and backward pass, counted by torch. Variants take turns; results are medians.

    python benchmarks/train_step.py --overhead --rounds 12

measures the share of a run's time that reports, metrics and checkpoints take.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import median

import common
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train_overhead import measure_overhead

from pipeline.host import keep_freed_memory
from trainer.models.alexnet import ARCHITECTURES, build_model
from trainer.models.classifier import Classifier, Spec
from trainer.models.layers import LocalResponseNorm
from trainer.optim.optimizers import build_optimizer
from trainer.precision import Precision, cpu_has_bfloat16
from trainer.recipe import Recipe
from trainer.training.setup import compile_in_place
from trainer.training.step import forward, train_step

_CLASSES = 1000
_CROP = 224
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SIDE = 4096
# Smallest speedup of `alexnet` at batch 128 on two cores, over the eager float32 network with torch's layer.
_TARGETS = {"float32": 2.0, "bfloat16": 3.0}


@dataclass(frozen=True)
class Variant:
    """A variant of the training step.

    Attributes:
        arch: Architecture.
        precision: "float32" or "bfloat16".
        compiled: Whether the network is compiled.
        channels_last: Whether weights and images are in channels-last layout.
        torchs_norm: Whether torch's `nn.LocalResponseNorm` replaces ours.
        memory_kept: Whether malloc keeps freed memory.
    """

    arch: str
    precision: str
    compiled: bool
    channels_last: bool
    torchs_norm: bool = False
    memory_kept: bool = True

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.torchs_norm:
            return "eager, nn.LocalResponseNorm" + (", memory kept" if self.memory_kept else "")
        layout = "channels last" if self.channels_last else "channels first"
        return f"{'compiled' if self.compiled else 'eager'}, {layout}"


def main() -> int:
    options = _arguments()
    print(f"{common.command_line()}\n{common.machine()}, torch {torch.__version__}\n")
    if options.overhead:
        return measure_overhead(options.rounds)
    if options.device == "cpu":
        keep_freed_memory()
    precisions = dict(_PRECISIONS)
    if options.device == "cpu" and not cpu_has_bfloat16():
        del precisions["bfloat16"]
        print("bfloat16 is not measured: this processor lacks it, and the trainer uses float32 instead\n")
    limits = {name: _matrix_throughput(dtype, options.device) for name, dtype in precisions.items()}
    print(
        ", ".join(
            f"{name} matrix product {throughput / 1e9:,.0f} GFLOP/s" for name, throughput in limits.items()
        )
        + "\n"
    )
    rows, missed = [], False
    for arch in options.arch:
        torch.compiler.reset()  # torch stops compiling a function after eight variants
        found = _measure(arch, list(precisions), options)
        flops = _flops(arch)
        base = next(
            (throughput for v, throughput in found.items() if v.torchs_norm and not v.memory_kept), None
        )
        for variant, throughput in found.items():
            limit = limits[variant.precision] / flops
            ratio = throughput / base if base else None
            rows.append((arch, variant, throughput, ratio, throughput / limit))
        if arch == "alexnet" and base and options.device == "cpu":
            missed |= _misses({variant: throughput / base for variant, throughput in found.items()})
    print("\n" + _table(rows))
    plain = [
        {"arch": arch, "variant": asdict(v), "throughput": throughput, "ratio": ratio, "of_limit": share}
        for arch, v, throughput, ratio, share in rows
    ]
    common.save_json(options.json, rows=plain)
    return int(missed)


def _misses(ratios: dict[Variant, float]) -> bool:
    """Print for each precision whether the faster compiled layout meets its target; return if any misses."""
    missed = False
    for precision, target in _TARGETS.items():
        compiled = [v for v in ratios if v.compiled and v.precision == precision]
        if compiled:
            best = max(compiled, key=ratios.__getitem__)
            missed |= ratios[best] < target
            print(
                f"{best.arch}, {precision} {best.name}: {ratios[best]:.2f} of eager with torch's layer, "
                f"target ≥ {target:g}: {common.judged(ratios[best] >= target)}"
            )
    return missed


def _measure(arch: str, precisions: list[str], options: argparse.Namespace) -> dict[Variant, float]:
    """Return images per second of each variant, the median of rounds in which all take turns."""
    variants = [
        Variant(arch, precision, compiled, last)
        for precision in precisions
        for compiled in (False, True)
        for last in (False, True)
    ]
    if any(isinstance(m, LocalResponseNorm) for m in build_model(arch, 10, 0.05).modules()):
        for kept in (True, False) if options.device == "cpu" else (False,):
            variants.insert(0, Variant(arch, "float32", False, False, torchs_norm=True, memory_kept=kept))
    steps = {variant: _step(variant, options.batch, options.device) for variant in variants}
    for step in steps.values():
        _time(step, options.steps, options.device)  # compiles
    timed = {v: partial(_time, step, options.steps, options.device) for v, step in steps.items()}
    times = common.take_turns(
        timed,
        options.rounds,
        lambda v, seconds: f"{arch} {v.precision} {v.name}: {options.batch / seconds:,.1f}/s",
    )
    return {variant: options.batch / median(found) for variant, found in times.items()}


def _step(variant: Variant, batch: int, device: str) -> Callable[[], object]:
    if not variant.memory_kept and device == "cpu":
        return _SeparateProcess(variant, batch)
    return _step_here(variant, batch, device)


class _SeparateProcess:
    """A training step on the CPU in a separate process, whose malloc has its default settings."""

    def __init__(self, variant: Variant, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, variant, batch), daemon=True).start()
        theirs.close()  # so that `recv` raises if the process has died

    def __call__(self) -> None:
        self._ours.send(None)
        self._ours.recv()


def _serve(connection: Connection, variant: Variant, batch: int) -> None:
    step = _step_here(variant, batch, "cpu")
    with suppress(EOFError):  # the parent has ended
        while True:
            connection.recv()
            step()
            connection.send(None)


def _step_here(variant: Variant, batch: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    classifier = Classifier(_spec(variant.arch)).to(device)
    if variant.torchs_norm:
        _use_torchs_norm(classifier.model)
    images = torch.randn(batch, 3, _CROP, _CROP, device=device)
    if variant.channels_last:
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    if variant.compiled:
        compile_in_place(classifier, "gpu" if device == "cuda" else "cpu")
    labels = torch.randint(_CLASSES, (batch,), device=device)
    recipe = Recipe(name="t", arch="alexnet", epochs=1, lr=1e-6, precision=variant.precision)  # type: ignore[arg-type]
    optimizer = build_optimizer(classifier.model, recipe)
    precision = Precision(_PRECISIONS[variant.precision])
    return lambda: train_step(classifier, optimizer, images, labels, recipe, precision)


def _spec(arch: str) -> Spec:
    """Return the spec of a network of 1000 classes with per-channel mean subtraction."""
    classes = tuple(str(number) for number in range(_CLASSES))
    return Spec(arch, 1.0, _CROP, classes, 256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), mean_image=False)


def _use_torchs_norm(model: nn.Module) -> None:
    for name, module in model.named_children():
        if isinstance(module, LocalResponseNorm):
            size = module.size
            setattr(model, name, nn.LocalResponseNorm(size, module.alpha * size, 0.75, module.k))


def _time(step: Callable[[], object], steps: int, device: str) -> float:
    """Return the seconds per step, averaged over `steps` steps."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def _matrix_throughput(dtype: torch.dtype, device: str) -> float:
    """Return FLOP/s of a large matrix product, the best of six."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    seconds = min(_time(lambda: a @ b, 1, device) for _ in range(6))
    return 2 * _SIDE**3 / seconds


def _flops(arch: str) -> float:
    """Return the FLOPs of one image's forward and backward pass, counted by torch's FlopCounterMode."""
    model, recipe = build_model(arch, _CLASSES), Recipe(name="t", arch="alexnet", epochs=1, lr=1e-6)
    images, labels = torch.zeros(2, 3, _CROP, _CROP), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        forward(model, images, labels, recipe, Precision())[0].backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / 2


def _table(rows: list[tuple[str, Variant, float, float | None, float]]) -> str:
    cells = [
        (arch, v.precision, v.name, f"{throughput:,.1f}", f"{ratio:.2f}" if ratio else "–", f"{of:.0%}")
        for arch, v, throughput, ratio, of in rows
    ]
    ratio, share = "vs. eager, torch's norm", "share of arithmetic limit"
    return common.markdown(("network", "precision", "variant", "images/s", ratio, share), cells)


def _arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, "rounds", "json")
    parser.add_argument(
        "--arch", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES), help="architectures"
    )
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to train on")
    parser.add_argument("--steps", type=int, default=1, help="steps of each variant per round")
    parser.add_argument(
        "--overhead", action="store_true", help="measure the cost of reports and checkpoints instead"
    )
    return common.checked(parser)


if __name__ == "__main__":
    common.finish(main)
