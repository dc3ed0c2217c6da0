"""Compare the throughput of preparation with its peers and its limit, in one run.

    python benchmarks/prep.py --work /tmp/prep --chart prep.png --json prep.json

Links the images below --source under --images distinct names, then runs the contenders in turns, --rounds
times each, as whole commands: ours, the usual Pillow loop, img2dataset in its own environment, and the limit
(decoding, resizing and encoding only, each by the fastest library). Every output is read back and must hold
as many 256×256 images of quality 95. Needs the `dev` extra.
"""

import argparse
from functools import partial
from pathlib import Path

import common
import contenders
import outputs
import report
from candidates import QUALITY, SIZE
from common import BenchmarkError
from contenders import Contender, Images
from limit import Timing, try_all
from processes import Usage
from report import FEW, Row

KINDS = ("ours", "keep-original", "pillow", "img2dataset", "limit")
_CANDIDATE_IMAGES = 350


def main() -> int:
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(
            common.versions(
                "alexnet-toolkit", "simplejpeg", "opencv-python-headless", "pillow", "torch", "webdataset"
            )
        )
        images, few = _prepare_source(options, work)
        candidates: list[Timing] = []
        chain: tuple[str, ...] = ()
        if "limit" in options.contenders:
            candidates, chain = _candidates(images, options.rounds)
        found, skipped = contenders.contenders(options.contenders, options.workers, work, chain)
        for line in skipped:
            print(f"skipped: {line}")
        if not found:
            raise BenchmarkError("none of the requested contenders can run here")
        rows = _measure(found, images, few, options.rounds, work)
        peer = contenders.img2dataset_versions(work)
        problems = report.show(rows, images.count, options.rounds, peer)
        common.save_json(options.json, **report.facts(rows, candidates, images.count, peer))
        if options.chart:
            report.draw(rows, images.count, options.chart)
        for folder in (images.source, few.source, work / "originals", work / "out"):
            common.fresh(folder)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    most = common.cores()
    options = common.parser(__doc__, "source", "rounds", "work", "chart", "json")
    options.add_argument("--images", type=int, default=5000, help="number of images to prepare")
    options.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=sorted({1, most}),
        help="numbers of processes; peers run with the largest only",
    )
    options.add_argument(
        "--contenders", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME", help=", ".join(KINDS)
    )
    given = common.checked(options)
    if given.images <= FEW:
        options.error(f"--images must be at least {FEW + 1}")
    given.workers = sorted(set(given.workers))
    return given


def _prepare_source(options: argparse.Namespace, work: Path) -> tuple[Images, Images]:
    originals = common.copy_originals(common.jpegs_below(options.source), common.fresh(work / "originals"))
    made = []
    for name, count in (("images", options.images), ("few", FEW)):
        folder = common.fresh(work / name)
        common.repeat(originals, folder, count)
        made.append(Images(folder, tuple(originals), count))
    size = sum(path.stat().st_size for path in originals) / len(originals)
    print(
        f"{options.images:,} images: {len(originals)} JPEGs of {size / 1000:.0f} kB on average under "
        f"distinct names; to {SIZE}×{SIZE}, quality {QUALITY}; everything in the page cache\n"
    )
    return made[0], made[1]


def _candidates(images: Images, rounds: int) -> tuple[list[Timing], tuple[str, ...]]:
    step = max(1, len(images.originals) // _CANDIDATE_IMAGES)
    timings, chain, unfit = try_all(images.originals[::step], rounds)
    table = [(f"{t.step}: {t.name}", f"{1e6 / t.microseconds:,.0f}") for t in timings]
    print(common.markdown(("single step, one process", "images/s"), table))
    if unfit:
        print(f"{unfit} images were left out: they do not decode as RGB JPEGs")
    print(f"the limit is: {' + '.join(chain)}\n")
    return timings, chain


def _measure(found: list[Contender], images: Images, few: Images, rounds: int, work: Path) -> list[Row]:
    """Run each contender on few images, then in rounds on all."""
    rows = [Row(c, _run(c, few, work)[0], [], None) for c in found]

    def measured(row: Row) -> Usage:
        usage, row.output = _run(row.contender, images, work)
        row.rounds.append(usage)
        return usage

    def shown(number: int, usage: Usage) -> str:
        contender = rows[number].contender
        return f"{contender.name}, {contender.workers}: {images.count / usage.wall:,.0f} images/s"

    common.take_turns({n: partial(measured, row) for n, row in enumerate(rows)}, rounds, shown)
    return rows


def _run(contender: Contender, images: Images, work: Path) -> tuple[Usage, outputs.Output | None]:
    out = common.fresh(work / "out")
    usage = contender.run(images, out)
    output = outputs.look(out) if contender.writes else None
    common.fresh(out)
    return usage, output


if __name__ == "__main__":
    common.finish(main)
