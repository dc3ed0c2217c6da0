"""Compare the throughput of the loader with its peers and its limit, in one run.

    python benchmarks/loader.py --work /tmp/loader --chart docs/images/loader.png --json loader.json

Shards the images below --source, repeated under distinct names, at 256 px and at their original size.
Then loads batches of them with each feeder: our loader with each of its backends, webdataset with Pillow and
torchvision's transforms, SPDL, FFCV, and the limit (libjpeg-turbo decodes whole images in memory, one process
per core). The feeders of a setting take turns in each of --rounds. `--device gpu` measures only our loader,
with both backends. Needs
the `dev` extra; SPDL and FFCV get environments of their own below --work, and are skipped with the reason
where they cannot be installed.
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import common
import loader_gpu
import loader_profile
import loader_report
from feeders import KINDS, Feeder, Row, Setting, all_feeders, can, running

AUGMENTATIONS = ("paper", "random-resized-crop")


def main() -> int:
    options = _options()
    if options.device == "gpu":
        loader_gpu.check()
    with common.work_folder(options.work) as work:
        common.print_facts(
            common.versions(
                "alexnet-toolkit", "nvidia-dali-cuda130", "torch", "webdataset", "pillow", "simplejpeg"
            )
        )
        shards = {size: _shards(options, work, size) for size in options.sizes}
        if options.device == "gpu":
            loader_gpu.sweep(shards["256"], options.rounds, options.images)
            return 0
        found, skipped = all_feeders(options.feeders, work)
        for line in skipped:
            print(f"skipped: {line}\n")
        rows = []
        for size, data in shards.items():
            for augmentation in options.augmentations:
                for threads in options.threads:
                    setting = Setting(data, size == "original", augmentation, threads, options.batch)
                    rows += _measure(found, setting, options)
        problems = loader_report.show(rows)
        profile = {size: loader_profile.profile(data, options.rounds) for size, data in shards.items()}
        common.save_json(options.json, profile=profile, rows=[_plain(row) for row in rows])
        if options.chart:
            loader_report.draw(rows, options.chart)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "source", "rounds", "work", "chart", "json")
    options.add_argument(
        "--images", type=int, default=4000, help="number of images in the shards and in a round"
    )
    options.add_argument("--batch", type=int, default=128, help="images per batch")
    options.add_argument(
        "--sizes",
        nargs="+",
        choices=["256", "original"],
        default=["256", "original"],
        help="sizes of the stored images",
    )
    options.add_argument(
        "--augmentations", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS), help="augmentations"
    )
    options.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, min(2, common.cores())}),
        help="numbers of threads or worker processes",
    )
    options.add_argument(
        "--feeders", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME", help=", ".join(KINDS)
    )
    options.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="device to load to")
    return common.checked(options)


def _shards(options: argparse.Namespace, work: Path, size: str) -> Path:
    """Return the folder of the sharded images; an existing one is reused."""
    keep = ["--keep-original"] if size == "original" else []
    out = work / f"shards-{size}-{options.images}"
    return common.prepare(options.source, work, out, options.images, "--val-fraction", "0.02", *keep)


def _measure(found: list[Feeder], setting: Setting, options: argparse.Namespace) -> list[Row]:
    rows = [Row(feeder, setting) for feeder in found if can(feeder, setting)]
    # Images of original size take several times as long to decode.
    count = options.images // (4 if setting.original else 1)
    with running(rows) as started:
        parts = {each.row.feeder.name: partial(each.measure, count) for each in started}
        where = loader_report.describe(setting)
        show = lambda name, throughput: f"{where}, {name}: {throughput:,.0f} images/s"  # noqa: E731
        common.take_turns(parts, options.rounds, show)
    return rows


def _plain(row: Row) -> dict[str, object]:
    setting = asdict(row.setting) | {"data": row.setting.data.name}
    return {
        "kind": row.feeder.kind,
        "setting": setting,
        "throughputs": row.throughputs,
        "cpu_microseconds": row.cpu,
    }


if __name__ == "__main__":
    common.finish(main)
