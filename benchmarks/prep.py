"""Compare the throughput of preparation with its peers and its limit, in one run.

    python benchmarks/prep.py --work /tmp/prep --chart prep.png --json prep.json

Links the images below --source under --images distinct names, then runs the contenders in turns, --rounds
times each, as whole commands: ours, the usual Pillow loop, img2dataset in its own environment, and the limit
(decoding, resizing and encoding only, each by the fastest library). Every output is read back and must hold
as many 256×256 images of quality 95. Needs the `dev` extra; see also benchmarks/requirements.txt.
"""

import argparse
import json
import sys
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

KINDS = ("ours", "keep-original", "pillow", "img2dataset", "http", "limit")
_CANDIDATE_IMAGES = 350


def main() -> int:
    options = _options()
    common.check_chart(options.chart)
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
        if options.json:
            facts = report.as_json(rows, candidates, images.count, peer)
            options.json.write_text(json.dumps(facts, indent=1))
        if options.chart:
            report.draw(rows, images.count, options.chart)
        for folder in (images.source, few.source, work / "originals", work / "out"):
            common.fresh(folder)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    most = common.cores()
    options = common.parser(__doc__)
    source = common.test_data() / "imagenet-sample"
    options.add_argument("--source", type=Path, default=source, help="folder with JPEGs in class folders")
    options.add_argument("--images", type=int, default=5000, help="number of images to prepare")
    options.add_argument("--rounds", type=int, default=3, help="runs of each contender")
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
    options.add_argument(
        "--work", type=Path, help="folder for images and outputs; img2dataset's environment is kept there"
    )
    options.add_argument("--chart", type=Path, help="draw the throughputs to this PNG file")
    options.add_argument("--json", type=Path, help="write every measurement to this file")
    given = options.parse_args()
    if given.images <= FEW or given.rounds < 1 or min(given.workers) < 1:
        options.error(f"--images must be at least {FEW + 1}, --rounds and --workers at least 1")
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
    timings, chain, notes = try_all(images.originals[::step], rounds)
    header = ("single step, one process", "images/s", "equal quality")
    table = [
        (f"{t.candidate.step}: {t.candidate.name}", f"{1e6 / t.microseconds:,.0f}", _yes(t.candidate.equal))
        for t in timings
    ]
    print(common.markdown(header, table))
    for note in notes:
        print(note)
    print(f"the limit is: {' + '.join(chain)}\n")
    return timings, chain


def _yes(good: bool) -> str:
    return "yes" if good else "no"


def _measure(found: list[Contender], images: Images, few: Images, rounds: int, work: Path) -> list[Row]:
    """Run each contender on few images, then in rounds on all; every other round is in reverse order."""
    rows = [Row(c, _run(c, few, work)[0], [], None) for c in found]
    for number in range(rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            usage, output = _run(row.contender, images, work)
            row.rounds.append(usage)
            row.output = output
            throughput = images.count / usage.wall
            print(
                f"round {number + 1}: {row.contender.name}, {row.contender.workers}: "
                f"{throughput:,.0f} images/s",
                file=sys.stderr,
            )
    return rows


def _run(contender: Contender, images: Images, work: Path) -> tuple[Usage, outputs.Output | None]:
    out = common.fresh(work / "out")
    usage = contender.run(images, out)
    output = outputs.look(out) if contender.writes else None
    common.fresh(out)
    return usage, output


if __name__ == "__main__":
    common.finish(main)
