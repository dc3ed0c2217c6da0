"""Measure time and memory of listing and planning ILSVRC 2012: 1,281,167 training, 50,000 validation images.

    python benchmarks/plan.py --work /tmp/plan --meta META

Makes archives with the structure and names of the real ones but tiny JPEGs (some 1.4 GB), then lists the
source and stores its plan in a separate process, --rounds times. META is a folder with `meta_clsloc.csv`
(columns WNID and num_train_images, as in the devkit) and `LOC_val_solution.csv`; without it, class names are
made up and all classes have nearly the same number of images. The real archives are a hundred times larger,
so that each tar header is on another page, which the disk must read; --cold measures these smaller archives
when they are read from disk.
"""

import argparse
import csv
import io
import json
import random
import sys
import tarfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import common
from common import BenchmarkError
from PIL import Image
from processes import peak_of_this_process

_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_SOLUTION = "LOC_val_solution.csv"
_CLASSES, _TRAIN_IMAGES, _VAL_IMAGES = 1000, 1_281_167, 50_000
_MOST_SECONDS, _MOST_BYTES = 120, 1e9


def main() -> int:
    if task := common.child_task():
        print(json.dumps(_list_and_plan(*task)))
        return 0
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "msgspec"))
        source = _archives(work, options.meta, options.classes)
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"archives of tiny JPEGs: {size / 1e9:.2f} GB\n")
        rounds = []
        for _ in range(options.rounds):
            if options.cold:
                common.forget_pages(source)
            rounds.append(_measure(source, common.fresh(work / "out")))
        common.fresh(work / "out")
        met = _report(rounds, options)
        common.save_json(options.json, rounds=rounds)
    return 0 if met else 1


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "rounds", "work", "json")
    meta = common.test_data() / "imagenet-meta"
    options.add_argument(
        "--meta",
        type=Path,
        default=meta if meta.is_dir() else None,
        help="folder with the true counts and labels",
    )
    options.add_argument(
        "--cold", action="store_true", help="drop the archives from the page cache before each round"
    )
    options.add_argument(
        "--classes", type=int, default=_CLASSES, help="number of classes; fewer to try the script"
    )
    given = common.checked(options)
    if not 2 <= given.classes <= _CLASSES:
        options.error(f"--classes must be 2 to {_CLASSES}")
    return given


def _list_and_plan(source: str, out: str) -> dict[str, Any]:
    """Entry point of the separate process: do what `alexnet-prep shard` does before its first task.

    Returns:
        Seconds of each part, peak memory in bytes, and counts of images, classes and shards.
    """
    started = time.perf_counter()
    from pipeline.sharding.plan import Options, make_plan, store_plan
    from pipeline.sources.detection import read_source
    from pipeline.storage.open import open_store

    imported = time.perf_counter()
    found = read_source(source)
    listed = time.perf_counter()
    counts = {split: len(samples) for split, samples in found.splits.items()}
    plan, shards = make_plan(found, Options())
    planned = time.perf_counter()
    store_plan(open_store(out), plan, shards)
    stored = time.perf_counter()
    if sum(len(shard.samples) for shard in shards) != sum(counts.values()):
        raise BenchmarkError("the plan does not hold every image of the source exactly once")
    return {
        "import": imported - started,
        "list": listed - imported,
        "plan": planned - listed,
        "store": stored - planned,
        "peak_bytes": peak_of_this_process(),
        "counts": counts,
        "classes": len(found.classes),
        "shards": len(shards),
        "layout": found.layout,
    }


def _measure(source: Path, out: Path) -> dict[str, Any]:
    started = time.perf_counter()
    found = common.run_child([str(source), str(out)])
    wall = time.perf_counter() - started
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {**found, "wall": wall, "plan_bytes": written}


def _report(rounds: list[dict[str, Any]], options: argparse.Namespace) -> bool:
    last = rounds[-1]
    counts = ", ".join(f"{count:,} {split}" for split, count in last["counts"].items())
    made = f"{last['classes']:,} classes, {last['shards']:,} shards planned"
    print(f"{last['layout']}: {counts} images, {made}")
    cache = "dropped from" if options.cold else "in"
    print(f"medians of {len(rounds)} rounds, each a new process; archives {cache} the page cache\n")
    parts = ("import", "list", "plan", "store")
    seconds = [("whole process", "wall"), *((f"of which {name}", name) for name in parts)]
    table = [(label, f"{median(r[key] for r in rounds):.1f} s", "") for label, key in seconds]
    wall, peak = max(r["wall"] for r in rounds), max(r["peak_bytes"] for r in rounds)
    table[0] = (table[0][0], table[0][1], f"{_MOST_SECONDS} s")
    table.append(("peak RSS", f"{peak / 1e6:,.0f} MB", f"{_MOST_BYTES / 1e6:,.0f} MB"))
    table.append(("stored plan", f"{last['plan_bytes'] / 1e6:,.0f} MB", ""))
    print(common.markdown(("", "measured", "limit"), table))
    if options.classes != _CLASSES:
        print("\nnot all classes: the limits are not checked")
        return True
    expected = {"train": _TRAIN_IMAGES, "val": _VAL_IMAGES}
    if last["counts"] != expected:
        raise BenchmarkError(f"the source was listed as {last['counts']}, not {expected}")
    met: bool = wall <= _MOST_SECONDS and peak <= _MOST_BYTES
    print(f"\nslowest round within both limits: {'yes' if met else 'NO'}")
    return met


def _archives(work: Path, meta: Path | None, classes: int) -> Path:
    """Make the archives, or reuse those of an earlier run with the same options."""
    folder, note = work / "archives", work / "archives.json"
    wanted = json.dumps({"meta": str(meta), "classes": classes})
    if not (note.is_file() and note.read_text() == wanted):
        note.unlink(missing_ok=True)
        _make_archives(common.fresh(folder), meta, classes)
        note.write_text(wanted)
    return folder


def _make_archives(folder: Path, meta: Path | None, classes: int) -> None:
    print("making the archives ...", file=sys.stderr)
    folder.mkdir(parents=True)
    counts = dict(sorted(_counts(meta).items())[:classes])
    image = _tiny_jpeg()
    draw = random.Random(2012)
    with tarfile.open(folder / _TRAIN, "w", format=tarfile.USTAR_FORMAT) as tar:
        for wnid, count in counts.items():
            numbers = draw.sample(range(1, 4 * count), count)  # with gaps and in no order
            inner = common.tar_bytes({f"{wnid}_{number}.JPEG": image for number in numbers})
            member = tarfile.TarInfo(f"{wnid}.tar")
            member.size = len(inner)
            tar.addfile(member, io.BytesIO(inner))
    labels = _val_labels(meta, list(counts), draw)
    (folder / _VAL).write_bytes(common.tar_bytes({f"{name}.JPEG": image for name in sorted(labels)}))
    with (folder / _SOLUTION).open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(("ImageId", "PredictionString"))
        rows.writerows((name, f"{wnid} 1 1 8 8 ") for name, wnid in labels.items())


def _counts(meta: Path | None) -> dict[str, int]:
    """Return WNID → number of training images."""
    table = meta / "meta_clsloc.csv" if meta else None
    if table is None or not table.is_file():
        even, more = divmod(_TRAIN_IMAGES, _CLASSES)
        return {f"n{10_000_000 + 7919 * n:08d}": even + (n < more) for n in range(_CLASSES)}
    with table.open(newline="") as file:
        counts = {row["WNID"]: int(row["num_train_images"]) for row in csv.DictReader(file)}
    if len(counts) != _CLASSES or sum(counts.values()) != _TRAIN_IMAGES:
        raise BenchmarkError(f"{table}: {len(counts)} classes and {sum(counts.values()):,} images")
    return counts


def _val_labels(meta: Path | None, wnids: list[str], draw: random.Random) -> dict[str, str]:
    """Return validation image → WNID, in the order of the labels' file."""
    table = meta / _SOLUTION if meta else None
    if table is not None and table.is_file() and len(wnids) == _CLASSES:
        with table.open(newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, _VAL_IMAGES + 1)]
    draw.shuffle(names)
    return {name: wnids[number % len(wnids)] for number, name in enumerate(names)}


def _tiny_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 64, 32)).save(buffer, "JPEG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    common.finish(main)
