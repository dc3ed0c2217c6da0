"""Measure the effect of large batches, LARS, color noise and crops on accuracy; results: docs/fidelity.md.

    python benchmarks/experiments.py large-batch ablation --work /tmp/experiments

Every run is one of `alexnet-train` on the clothing photographs of the test data (1,192 for training, 341 for
validation, ten classes). Its result is the validation top-1 of the last epoch, not of the best. Finished runs
are not repeated, and stopped ones are continued.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import common

_SEEDS = (1, 2, 3)
_EPOCHS = 40
# A network that trains for 40 epochs in half a minute on two cores.
_BASE = {"epochs": _EPOCHS, "crop": 112, "width": 0.25, "warmup_epochs": 3.0}
_PREPARE = {"plain": 128, "no jitter": 112}
_TRUST_COEFFICIENTS = (0.05, 0.2, 0.8)


@dataclass(frozen=True)
class Setting:
    """A row of a table.

    Attributes:
        name: Name in the table.
        data: Key of _PREPARE, the dataset.
        changes: Settings that differ from recipe `small`.
    """

    name: str
    data: str
    changes: dict[str, object]


def main() -> int:
    options = _arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    for name, size in _PREPARE.items():
        out = options.work / _folder(name)
        if not (out / "manifest.json").exists():
            clothing = str(common.test_data() / "clothing")
            common.run([common.tool("alexnet-prep"), "shard", clothing, str(out), "--size", str(size)])
    print(f"{common.command_line()}\n{common.machine()}\n")
    if "large-batch" in options.tables:
        _table("Large batches", _large_batches(options.work), options.work)
    if "ablation" in options.tables:
        _table("Color noise and crops", _ablation(), options.work)
    return 0


def _large_batches(work: Path) -> list[Setting]:
    """Batches of 32 and 256: SGD with linearly scaled lr, LARS with the trust coefficient best at seed 0."""
    settings = []
    for batch in (32, 256):
        lr = 0.05 * batch / 64
        shared_settings: dict[str, object] = {"batch_size": batch, "lr": lr}
        settings.append(Setting(f"batch {batch}, SGD, lr {lr:g}", "plain", shared_settings))
        tried = [
            Setting(
                f"batch {batch}, LARS, trust coefficient {trust_coefficient:g}",
                "plain",
                shared_settings | _lars(trust_coefficient),
            )
            for trust_coefficient in _TRUST_COEFFICIENTS
        ]
        found = [_accuracy(setting, 0, work) for setting in tried]
        print(
            "search at seed 0: " + ", ".join(f"{s.name} {a:.1%}" for s, a in zip(tried, found, strict=True))
        )
        settings.append(tried[found.index(max(found))])
    return settings


def _lars(trust_coefficient: float) -> dict[str, object]:
    return {"optimizer": "lars", "trust_coefficient": trust_coefficient, "schedule": "polynomial"}


def _ablation() -> list[Setting]:
    """One change at a time; for "no jitter", images are stored in the size of the crops."""
    paper: dict[str, object] = {"augmentation": "paper", "color_noise": "paper"}
    resized = {"augmentation": "random-resized-crop"}
    return [
        Setting("random crop and flip, the paper's noise", "plain", paper),
        Setting("the source's noise", "plain", {**paper, "color_noise": "source"}),
        Setting("no noise", "plain", {**paper, "color_noise": "none"}),
        Setting("flip alone, the paper's noise", "no jitter", paper),
        Setting("random-resized crop and flip, the paper's noise", "plain", paper | resized),
    ]


def _table(title: str, settings: list[Setting], work: Path) -> None:
    rows = []
    for setting in settings:
        found = [_accuracy(setting, seed, work) for seed in _SEEDS]
        each = ", ".join(f"{accuracy:.1%}" for accuracy in found)
        rows.append((setting.name, f"{mean(found):.1%} ± {100 * stdev(found):.1f}", each))
        print(f"  {rows[-1]}", flush=True)
    print(f"\n{title}: top-1 after {_EPOCHS} epochs, mean ± standard deviation\n")
    print(common.markdown(("setting", "top-1", "seeds"), rows) + "\n", flush=True)


def _accuracy(setting: Setting, seed: int, work: Path) -> float:
    """Return the validation top-1 of the run's last epoch; train the run first where it is not finished."""
    changes = {**_BASE, "batch_size": 64, **setting.changes, "seed": seed}
    name = "-".join(f"{key}={value}" for key, value in sorted(changes.items()))
    out = work / "runs" / f"{_folder(setting.data)}-{name}".replace("/", "_")
    metrics = out / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    if len(rows) < _EPOCHS:
        sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        data = str(work / _folder(setting.data))
        options = ("--recipe", "small", "--cpus", "1", *sets, "--out", str(out))
        common.run([common.tool("alexnet-train"), data, *options, "--resume"])
        rows = metrics.read_text().splitlines()
    return float(json.loads(rows[-1])["val_top1"])


def _folder(name: str) -> str:
    return name.replace(" ", "-")


def _arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("tables", nargs="+", choices=["large-batch", "ablation"], help="tables to measure")
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets and runs; it is kept")
    return parser.parse_args()


if __name__ == "__main__":
    common.finish(main)
