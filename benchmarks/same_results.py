"""Print the results that a pure refactoring must not change: checksums of datasets, losses and metrics.

Run it on two commits, each with its own environment, and compare the outputs with diff. It prepares the test
images from class folders, from ImageNet's archives, from Parquet and from another tool's tars, trains for 40
steps (one process and two, float32 and bfloat16, and once compiled), and evaluates. Numbers are printed in
full precision and without their names, because names may have changed.

    python benchmarks/same_results.py --environment /path/to/old/.venv > old.txt
    python benchmarks/same_results.py > new.txt
    diff old.txt new.txt
"""

import csv
import hashlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import savemat

TRAIN = ("--recipe", "demo", "--set", "epochs=10", "--set", "batch_size=64", "--max-restarts", "0")
"""40 steps: four of 64 images per epoch."""


def main() -> int:
    """Prepare, train and evaluate, and print a line for each result."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--environment", type=Path, default=Path(sys.prefix), help="environment whose commands to run"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for datasets and runs, which is kept; a temporary one if not given"
    )
    given = parser.parse_args()
    with common.work_folder(given.work) as work:
        run = Commands(given.environment.absolute() / "bin", work)
        sample = common.test_data() / "imagenet-sample"
        for name, options in sources(sample, work).items():
            run(f"prepare {name}", "alexnet-prep", "shard", *options, name)
            print_dataset(name, work / name)
        write_tars(sample, work / "adopted")
        run("adopt tars", "alexnet-prep", "stats", "adopted")
        print_dataset("adopted", work / "adopted")
        for name, data, options in trainings():
            run(f"train {name}", "alexnet-train", data, *TRAIN, *options, "--out", f"run-{name}")
            print_run(name, work / f"run-{name}")
        for name, options in {"one crop": (), "ten crops": ("--views", "ten-crop")}.items():
            file = f"{name.replace(' ', '-')}.json"
            run(f"evaluate {name}", "alexnet-eval", "run-one", "--data", "folders", *options, "--json", file)
            print_numbers(name, json.loads((work / file).read_text()))
    return 0


class Commands:
    """Runs the commands of one environment in one folder.

    Args:
        programs: Folder of the commands.
        folder: Working directory.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs = programs
        self.folder = folder

    def __call__(self, stage: str, program: str, *arguments: str) -> None:
        """Run a command to its end.

        Raises:
            BenchmarkError: The command failed; the message has its output.
        """
        print(f"{stage} ...", file=sys.stderr)
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise common.BenchmarkError(f"{stage}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def trainings() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (name, dataset, options) of each training run."""
    eager = ("--set", "compile=false")
    paper = ("--set", "arch=alexnet", "--set", "mean=image", "--set", "optimizer=paper", "--set", "width=0.1")
    yield "one", "folders", eager
    yield "two-processes", "folders", (*eager, "--cpus", "2")
    yield "bfloat16", "folders", (*eager, "--set", "precision=bfloat16")
    yield "bfloat16-two-processes", "folders", (*eager, "--set", "precision=bfloat16", "--cpus", "2")
    yield "paper", "folders", (*eager, *paper)
    yield "compiled", "folders", (*paper, "--set", "compile=true")
    yield "original-size", "original", (*eager, "--set", "augmentation=random-resized-crop")
    yield "adopted", "adopted", eager


def sources(sample: Path, work: Path) -> dict[str, tuple[str, ...]]:
    """Write the sources; return dataset name → source and options of `alexnet-prep shard`."""
    write_archives(sample, work / "as-archives")
    write_parquet(sample, work / "as-parquet")
    return {
        "folders": (str(sample), "--max-bad", "0.1", "--workers", "2"),
        "aspect": (str(sample), "--keep-aspect", "--exif-rotate", "--max-bad", "0.1"),
        "original": (str(sample), "--keep-original", "--max-bad", "0.1"),
        "archives": ("as-archives", "--max-bad", "0.1"),
        "parquet": ("as-parquet", "--max-bad", "0.1"),
        "clothing": (str(sample.parent / "clothing"), "--size", "128", "--seed", "7", "--max-bad", "0.1"),
    }


def images(sample: Path, split: str) -> list[Path]:
    """Return the image files of a split, sorted by class and name."""
    return sorted((sample / split).glob("*/*.JPEG"))


def write_archives(sample: Path, folder: Path) -> None:
    """Write ImageNet's two archives and the development kit for the classes in `sample`."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted(path.name for path in (sample / "train").iterdir())
    inner = {f"{wnid}.tar": tar_of(sorted((sample / "train" / wnid).iterdir())) for wnid in classes}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(common.tar_bytes(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(
        tar_of(sorted(images(sample, "val"), key=lambda p: p.name))
    )
    ids = {wnid: number for number, wnid in enumerate(reversed(classes), 1)}
    labels = {int(path.stem.rpartition("_")[2]): ids[path.parent.name] for path in images(sample, "val")}
    truth = "".join(f"{labels.get(number, 1)}\n" for number in range(1, 50_001)).encode()
    files = {"data/meta.mat": meta_mat(ids), "data/ILSVRC2012_validation_ground_truth.txt": truth}
    kit = {f"ILSVRC2012_devkit_t12/{name}": data for name, data in files.items()}
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(common.tar_bytes(kit, "w:gz"))


def meta_mat(ids: Mapping[str, int]) -> bytes:
    """Return the devkit's meta.mat for WNID → ILSVRC2012_ID."""
    names = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    table = np.zeros((len(ids), 1), dtype=[(name, object) for name in names])
    for row, (wnid, number) in enumerate(ids.items()):
        table[row, 0] = (float(number), wnid, wnid, wnid, 0.0, np.zeros((1, 0)), 0.0, 1300.0)
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def tar_of(paths: Iterable[Path]) -> bytes:
    """Return a tar of the files, without their folders."""
    return common.tar_bytes({path.name: path.read_bytes() for path in paths})


def write_parquet(sample: Path, folder: Path) -> None:
    """Write a Parquet file for each split, in the schema of ImageNet on the Hugging Face hub."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    label = {path.name: number for number, path in enumerate(sorted((sample / "train").iterdir()))}
    for split, word in (("train", "train"), ("val", "validation")):
        files = images(sample, split)
        rows = [{"bytes": p.read_bytes(), "path": f"{p.stem}_{p.parent.name}{p.suffix}"} for p in files]
        table = pa.table({"image": rows, "label": [label[path.parent.name] for path in files]})
        pq.write_table(table, folder / "data" / f"{word}-00000-of-00001.parquet", row_group_size=50)


def write_tars(sample: Path, folder: Path) -> None:
    """Write WebDataset tars like those of another tool: other file names, labels without leading zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    label = {path.name: number for number, path in enumerate(sorted((sample / "train").iterdir()))}
    for split in ("train", "val"):
        files = [path for path in images(sample, split) if path.read_bytes()[:2] == b"\xff\xd8"]
        for part in range(4):
            members = {}
            for path in files[part::4]:
                members[f"{path.stem}.jpg"] = path.read_bytes()
                members[f"{path.stem}.cls"] = str(label[path.parent.name]).encode()
            (folder / f"{split}-{part}.tar").write_bytes(common.tar_bytes(members))


def print_dataset(name: str, folder: Path) -> None:
    """Print the SHA-256 of every shard, index and mean image, the statistics, and the report's row count."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".tar", ".idx", ".npy"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            print(f"{name} {path.relative_to(folder)} {digest}")
    print_numbers(f"{name} statistics", json.loads((folder / "manifest.json").read_text())["statistics"])
    with (folder / "report.csv").open(newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    print(f"{name} report: {rows} rows")


def print_run(name: str, folder: Path) -> None:
    """Print losses and accuracies of each epoch, and a checksum of the float tensors in last.pt."""
    import torch

    for line in (folder / "metrics.jsonl").read_text().splitlines():
        shown = {key: value for key, value in json.loads(line).items() if "loss" in key or "top" in key}
        print_numbers(f"{name} epoch", shown)
    saved = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    digest = hashlib.sha256()
    for tensor in tensors(saved):
        if tensor.is_floating_point():
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    print(f"{name} tensors of last.pt {digest.hexdigest()}")


def tensors(value: Any) -> Iterator[Any]:
    """Yield every tensor in nested dictionaries and lists, in order."""
    if hasattr(value, "is_floating_point"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def print_numbers(name: str, value: Any) -> None:
    """Print the finite floats of nested JSON in order and full precision, without names and other values."""
    print(name, *(repr(number) for number in floats(value)))


def floats(value: Any) -> Iterator[float]:
    """Yield the finite floats in nested dictionaries and lists, in order."""
    if isinstance(value, float) and math.isfinite(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floats(item)
    elif isinstance(value, list):
        for item in value:
            yield from floats(item)


if __name__ == "__main__":
    common.finish(main)
