"""Measure time and memory of listing and planning ImageNet's names, and how both grow.

    python benchmarks/plan.py --work /tmp/plan --meta META --times 1 2 4
    python benchmarks/plan.py --work /tmp/plan --meta META --layout folders

Makes a source with the structure and names of ILSVRC 2012 (1,281,167 training images, times N, and 50,000
validation images), then lists it and stores its plan in a separate process, --rounds times. Archives and
class tars hold tiny JPEGs (some 1.4 GB); files in folders are empty, because listing does not open them, and
`find`, which reads their sizes too, is measured beside it. META is a folder with `meta_clsloc.csv` (columns
WNID and num_train_images, as in the devkit) and `LOC_val_solution.csv`; without it, class names are made up
and all classes have nearly the same number of images. The real archives are a hundred times larger, so that
each tar header is on another page, which the disk must read; --cold measures these smaller ones when they are
read from disk. ImageNet-21k's 13.2 million images in 19,167 class tars are reckoned from the largest source;
`--layout class-tars --times 10` measures as many (14 GB).
"""

import argparse
import csv
import io
import json
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
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
_MOST_SECONDS, _MOST_BYTES = 25, 700e6  # of listing, and of the whole process
_IMAGENET_21K = 13_153_500  # images of the release of winter 2021, in 19,167 class tars


def main() -> int:
    if task := common.child_task():
        print(json.dumps(_list_and_plan(*task)))
        return 0
    options = _options()
    met = True
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "msgspec"))
        sources = []
        for times in options.times:
            source = _source(work, options, times)
            found: dict[str, Any] = {"times": times, "rounds": []}
            for _ in range(options.rounds):
                if options.cold:
                    common.forget_pages(source)
                found["rounds"].append(_measure(source, common.fresh(work / "out"), options.layout))
            common.fresh(work / "out")
            met &= _report(found, options)
            sources.append(found)
        _report_growth(sources)
        common.save_json(options.json, layout=options.layout, sources=sources)
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
        "--layout", choices=list(_MAKERS), default="archives", help="how the images lie in the source"
    )
    options.add_argument(
        "--times", type=int, nargs="+", default=[1], help="sizes, as multiples of ImageNet's training images"
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
    if min(given.times) < 1:
        options.error("--times must be 1 or more")
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

    base = peak_of_this_process()
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
        "cpu": time.process_time(),
        "base_bytes": base,
        "peak_bytes": peak_of_this_process(),
        "counts": counts,
        "classes": len(found.classes),
        "shards": len(shards),
        "layout": found.layout,
    }


def _measure(source: Path, out: Path, layout: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if layout == "folders":
        started = time.perf_counter()
        command = ["find", str(source), "-type", "f", "-printf", "%s %p\\n"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found["find"] = time.perf_counter() - started
    started = time.perf_counter()
    found |= common.run_child([str(source), str(out)])
    found["wall"] = time.perf_counter() - started
    found["plan_bytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return found


def _report(source: dict[str, Any], options: argparse.Namespace) -> bool:
    """Print the table of one source; return whether the limits are met, where they apply."""
    rounds = source["rounds"]
    last = rounds[-1]
    counts = ", ".join(f"{count:,} {split}" for split, count in last["counts"].items())
    made = f"{last['classes']:,} classes, {last['shards']:,} shards planned"
    print(f"\n{options.layout}: {counts} images, {made}")
    cache = "dropped from" if options.cold else "in"
    print(f"medians of {len(rounds)} rounds, each a new process; the source {cache} the page cache\n")
    parts = ("import", "list", "plan", "store")
    seconds = [("whole process", "wall"), *((f"of which {name}", name) for name in parts)]
    seconds.append(("CPU time", "cpu"))
    if "find" in last:
        seconds.append(("`find`", "find"))
    limits = {"list": f"{_MOST_SECONDS} s"} if options.layout == "archives" else {}
    table = [
        (label, f"{median(r[key] for r in rounds):.1f} s", limits.get(key, "")) for label, key in seconds
    ]
    listed, peak = max(r["list"] for r in rounds), max(r["peak_bytes"] for r in rounds)
    table.append(("peak RSS", f"{peak / 1e6:,.0f} MB", f"{_MOST_BYTES / 1e6:,.0f} MB"))
    table.append(("stored plan", f"{last['plan_bytes'] / 1e6:,.0f} MB", ""))
    print(common.markdown(("", "measured", "limit"), table))
    if options.classes != _CLASSES or source["times"] != 1:
        print("\nnot ImageNet's size: the limits are not checked")
        return True
    expected = {"train": _TRAIN_IMAGES, "val": _VAL_IMAGES}
    if last["counts"] != expected:
        raise BenchmarkError(f"the source was listed as {last['counts']}, not {expected}")
    met = peak <= _MOST_BYTES and (options.layout != "archives" or listed <= _MOST_SECONDS)
    print(f"\nslowest round within the limits: {'yes' if met else 'NO'}")
    return met


def _report_growth(sources: list[dict[str, Any]]) -> None:
    """Print time and memory an image of each source, and what the largest makes of ImageNet-21k."""
    rows = []
    for source in sources:
        rounds = source["rounds"]
        images = sum(rounds[-1]["counts"].values())
        listed = median(r["list"] for r in rounds)
        memory = max(r["peak_bytes"] - r["base_bytes"] for r in rounds)
        base = max(r["base_bytes"] for r in rounds)
        rows.append(
            (
                f"{images:,}",
                f"{listed:.1f} s",
                f"{listed / images * 1e6:.1f} µs",
                f"{(base + memory) / 1e6:,.0f} MB",
                f"{memory / images:.0f} bytes",
            )
        )
    more = _IMAGENET_21K / images
    rows.append(
        (
            f"{_IMAGENET_21K:,} (reckoned)",
            f"{listed * more:.0f} s",
            "",
            f"{(base + memory * more) / 1e6:,.0f} MB",
            "",
        )
    )
    print()
    print(common.markdown(("images", "list", "an image", "peak RSS", "an image"), rows))


def _source(work: Path, options: argparse.Namespace, times: int) -> Path:
    """Make a source, or reuse that of an earlier run with the same options."""
    name = f"{options.layout}-{times}"
    folder, note = work / name, work / f"{name}.json"
    wanted = json.dumps({"meta": str(options.meta), "classes": options.classes})
    if not (note.is_file() and note.read_text() == wanted):
        note.unlink(missing_ok=True)
        print(f"making {folder} ...", file=sys.stderr)
        common.fresh(folder).mkdir(parents=True)
        counts = dict(sorted(_counts(options.meta).items())[: options.classes])
        labels = _val_labels(options.meta, list(counts), random.Random(50_000))
        for more in range(1, times):  # classes of made-up names
            counts |= {
                f"n{20_000_000 + 1000 * more + n:08d}": c
                for n, c in enumerate(list(counts.values())[: options.classes])
            }
        _MAKERS[options.layout](folder, counts, labels)
        note.write_text(wanted)
    return folder


def _names(counts: dict[str, int]) -> Iterator[tuple[str, list[str]]]:
    """Yield each class with the names of its images, numbered with gaps and in no order."""
    draw = random.Random(2012)
    for wnid, count in counts.items():
        yield wnid, [f"{wnid}_{number}.JPEG" for number in draw.sample(range(1, 4 * count), count)]


def _make_archives(folder: Path, counts: dict[str, int], labels: dict[str, str]) -> None:
    image = _tiny_jpeg()
    with tarfile.open(folder / _TRAIN, "w", format=tarfile.USTAR_FORMAT) as tar:
        for wnid, names in _names(counts):
            inner = common.tar_bytes(dict.fromkeys(names, image))
            member = tarfile.TarInfo(f"{wnid}.tar")
            member.size = len(inner)
            tar.addfile(member, io.BytesIO(inner))
            tar.members = []  # which tarfile remembers
    _make_val(folder, labels, image)


def _make_class_tars(folder: Path, counts: dict[str, int], labels: dict[str, str]) -> None:
    image = _tiny_jpeg()
    (folder / "train").mkdir()
    for wnid, names in _names(counts):
        (folder / "train" / f"{wnid}.tar").write_bytes(common.tar_bytes(dict.fromkeys(names, image)))
    _make_val(folder, labels, image)


def _make_val(folder: Path, labels: dict[str, str], image: bytes) -> None:
    """Make the flat tar of validation images, and the CSV of their labels."""
    (folder / _VAL).write_bytes(common.tar_bytes({f"{name}.JPEG": image for name in sorted(labels)}))
    with (folder / _SOLUTION).open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(("ImageId", "PredictionString"))
        rows.writerows((name, f"{wnid} 1 1 8 8 ") for name, wnid in labels.items())


def _make_folders(folder: Path, counts: dict[str, int], labels: dict[str, str]) -> None:
    by_class: dict[str, list[str]] = {}
    for name, wnid in labels.items():
        by_class.setdefault(wnid, []).append(f"{name}.JPEG")
    for split, classes in (("train", _names(counts)), ("val", by_class.items())):
        for wnid, names in classes:
            (folder / split / wnid).mkdir(parents=True)
            for name in names:
                (folder / split / wnid / name).touch()


_MAKERS = {"archives": _make_archives, "class-tars": _make_class_tars, "folders": _make_folders}


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
