"""`alexnet-prep`: convert images to WebDataset shards, and check, measure and describe datasets."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Group, section
from cli.common.console import echo, echo_lines, fail, one_line_errors, progress_bar
from cli.common.facts import facts_json, print_facts, print_rows, print_summary, statistics_rows
from cli.common.interrupts import keeping
from cli.common.options import (
    check_dataset,
    max_bad_option,
    max_megapixels_option,
    out_argument,
    say_source_and_out,
    source_argument,
    take_over_option,
    workers_option,
)
from cli.common.outputs import OutputFile, check_outputs, force_option
from cli.common.source_options import image_options, source_options, source_options_of
from cli.common.streams import writes_files
from pipeline.text import in_bytes

if TYPE_CHECKING:
    from pipeline import Dataset, Manifest, Statistics

_FOLDER = click.Path(path_type=Path)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-prep")
def main() -> None:
    """Convert images to WebDataset shards with RGB statistics, and check and describe them."""


@main.command()
@source_argument
@out_argument
@source_options
@image_options
@section(
    "Work",
    workers_option,
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where tasks run: in processes on this machine, or on a Ray cluster.",
    ),
    click.option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        help="Address of the Ray cluster, whose size --workers does not limit.  [default: RAY_ADDRESS, else "
        "a local Ray is started]",
    ),
    click.option(
        "--task",
        metavar="I/N",
        help="Make only shards I, I+N, I+2N, … (I from 0 to N-1), for job arrays; `finish` merges all.",
    ),
    click.option(
        "--scratch",
        type=_FOLDER,
        help="Local folder for temporary files: shards before upload to a bucket, and unpacked sources.",
    ),
)
@section(
    "Output",
    click.option(
        "--force",
        is_flag=True,
        help="Replace the dataset, or the unfinished one, in OUT; other files there stay.",
    ),
    take_over_option,
    click.option("--dry-run", is_flag=True, help="List SOURCE and stop; nothing is written."),
)
@one_line_errors
def shard(
    source: str,
    out: str,
    max_bad: float,
    workers: int,
    engine: str,
    ray_address: str | None,
    task: str | None,
    scratch: Path | None,
    force: bool,
    take_over: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Convert the images in SOURCE to a dataset in OUT.

    SOURCE is the current folder by default, OUT the folder that $ALEXNET_DATA names, else shards. Datasets
    and runs in SOURCE are not part of it. Both may be in a bucket (s3://, gs://). SOURCE holds images in
    class folders, tars or zips; ImageNet's archives or Kaggle's tree as downloaded, unpacked or half
    unpacked; Parquet files from the Hugging Face hub; or WebDataset tars; split by split. Every image is
    decoded completely, scaled, cropped to its center square, and written to the tars in shuffled order. To
    continue a stopped job, run the same command again.
    """
    from pipeline import (
        LocalExecutor,
        Options,
        RayExecutor,
        UsageError,
        open_store,
        prepare,
        prepare_slice,
        read_source,
    )
    from pipeline.sharding.output import open_output
    from pipeline.text import number_of

    if force and task is not None:
        raise UsageError(
            f"--force with --task {task}: each task would remove the others' shards; remove {out} first"
        )
    writes_files()
    say_source_and_out(source, out)
    read_with = replace(source_options_of(options), max_bad=max_bad)
    settings = Options(**options)
    run: dict[str, Any] = {
        "executor": RayExecutor(ray_address, workers) if engine == "ray" else LocalExecutor(workers),
        "max_bad": max_bad,
        "scratch": scratch,
        "take_over": take_over,
    }
    numbers = None if task is None else _numbers_in(task)
    if numbers and not dry_run:
        index, count = numbers
        with keeping(_again), progress_bar("preparing", "images") as show:
            shards = prepare_slice(
                source, out, settings, index, count, read_with=read_with, on_progress=show, **run
            )
        echo(
            f"{out}: task {index} of {count} done, {number_of(shards, 'shard')}; "
            f"after all tasks, run `alexnet-prep finish {out}`"
        )
        return
    started = time.perf_counter()
    if not dry_run:
        open_output(out, source, force=force)  # refuses it before the listing, which may take minutes
    found = read_source(source, read_with)
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in found.splits.items())
    echo(f"{source}: {counts} images, {len(found.classes)} classes")
    for note in (*found.notes, *found.left_out.notes()):
        echo(note)
    if dry_run:
        return
    finished_before = not force and open_store(out).is_file("manifest.json")
    with keeping(_again), progress_bar("preparing", "images") as show:
        manifest = prepare(found, out, settings, on_progress=show, force=force, **run)
    print_summary(out, manifest)
    if finished_before:
        echo(f"{out}: was complete already")
    else:
        echo(f"{out}: complete in {time.perf_counter() - started:.1f} s")


def _again() -> str:
    return "the same command continues with what is left"


def _numbers_in(task: str) -> tuple[int, int]:
    from pipeline import UsageError

    index, slash, count = task.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--task {task}: give the number of the task and the number of tasks, such as 0/16")
    return int(index), int(count)


@main.command()
@out_argument
@max_bad_option
@take_over_option
@one_line_errors
def finish(out: str, max_bad: float, take_over: bool) -> None:
    """Complete a dataset after all tasks of `shard --task`.

    Merges the tasks' results and writes the manifest of OUT, by default that of `shard`. If a task is not
    done, the error names a missing shard.
    """
    from pipeline import finish as merge

    writes_files()
    check_dataset("out", out)
    print_summary(out, merge(out, max_bad=max_bad, take_over=take_over))
    echo(f"{out}: complete")


@main.command()
@out_argument
@click.option("--fast", is_flag=True, help="Check checksums, indexes and labels only; decode no images.")
@workers_option
@one_line_errors
def verify(out: str, fast: bool, workers: int) -> None:
    """Check a dataset and list every fault.

    OUT is that of `shard` by default. Checks checksums, indexes, labels, counts and statistics, and decodes
    every image. The exit code is 1 if there is a fault.
    """
    from pipeline import LocalExecutor, verify as verify_dataset
    from pipeline.text import number_of

    check_dataset("out", out)
    started = time.perf_counter()
    with progress_bar("verifying", "images") as show:
        found = verify_dataset(out, fast=fast, executor=LocalExecutor(workers), on_progress=show)
    for note in found.notes:
        echo(f"note: {note.place}: {note.what}")
    for problem in found.problems:
        echo(f"{problem.place}: {problem.what}")
    seconds = time.perf_counter() - started
    images, shards = number_of(found.samples, "image"), number_of(found.shards, "shard")
    read = f"{images} in {shards}, {in_bytes(found.bytes)}, {seconds:.1f} s"
    if found.problems:
        fail(f"{out}: {number_of(len(found.problems), 'fault')} ({read})", 1)
    echo(f"{out}: no fault in {read}{'; images were not decoded' if fast else ''}")


@main.command()
@out_argument
@section(
    "Images",
    click.option(
        "--size",
        default=256,
        show_default=True,
        type=click.IntRange(8, 4096),
        help="For other tools' tars with images of mixed sizes: shorter side to which training scales them.",
    ),
    max_megapixels_option,
    max_bad_option,
)
@workers_option
@section("Output", click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."))
@one_line_errors
def stats(out: str, size: int, max_megapixels: float, max_bad: float, workers: int, as_json: bool) -> None:
    """Measure RGB statistics, or index the tars of other tools.

    OUT is that of `shard` by default. For a dataset made by `shard`, prints the statistics of the decoded
    images, and their difference to those in the manifest, which were measured before encoding. A folder of
    WebDataset tars of another tool becomes a dataset: an index is written beside each tar, and a manifest.
    """
    from pipeline import Dataset, LocalExecutor, adopt, decoded_statistics, open_store

    check_dataset("out", out)
    executor = LocalExecutor(workers)
    known = open_store(out).is_file("manifest.json")
    with progress_bar("measuring", "images") as show:
        if known:
            dataset = Dataset.open(out)
            manifest = dataset.manifest
            decoded: Statistics | None = decoded_statistics(dataset, executor, show)
        else:
            writes_files()
            manifest = adopt(
                out,
                size=size,
                max_bad=max_bad,
                max_megapixels=max_megapixels,
                executor=executor,
                on_progress=show,
            )
            decoded = manifest.statistics
    kept = manifest.statistics
    if as_json:
        import msgspec

        both = {"manifest": msgspec.to_builtins(kept), "decoded": msgspec.to_builtins(decoded)}
        echo_lines(json.dumps(both, indent=1))
        return
    if not known:
        print_summary(out, manifest)
    print_rows(statistics_rows(decoded))
    if kept and decoded and known:
        mean = max(abs(a - b) for a, b in zip(kept.mean, decoded.mean, strict=True))
        spread = max(abs(kept.deviations / decoded.deviations - 1))
        echo(
            f"{out}: the statistics in the manifest, measured on {kept.measured_on} pixels, differ by "
            f"{mean:.3f} gray levels in the mean and {spread:.2%} in the deviations"
        )
    elif not known:
        echo(f"{out}: indexed; {_use_of(out, manifest)}")


def _use_of(out: str, manifest: "Manifest") -> str:
    """Say what adopted tars are good for."""
    from pipeline import Dataset

    if "train" not in manifest.splits:
        return "without training images, it is for evaluation"
    if hint := _shuffling(Dataset.open(out)):
        return hint
    if "val" in manifest.splits:
        return f"train on it with `alexnet-train {out}`"
    return (
        f"train on it with `alexnet-train {out} --set schedule=cosine`, without validation, as there is no "
        f"split val; `alexnet-prep shard {out} OTHER --val-fraction 0.1` writes a dataset with one"
    )


def _shuffling(dataset: "Dataset") -> str:
    """Recommend to shuffle adopted tars whose training images are sorted by class; "" for all others."""
    from pipeline import ToolkitError

    splits = dataset.manifest.splits
    with suppress(ToolkitError):  # of damaged tars, of which `alexnet-prep verify` tells more
        if dataset.manifest.adopted and "train" in splits and dataset.samples("train").are_sorted():
            held_out = "" if "val" in splits else " --val-fraction 0.1"
            return (
                "its training images are sorted by class, so batches mix few classes; "
                f"`alexnet-prep shard {dataset.url} OTHER{held_out}` writes them anew, shuffled"
            )
    return ""


@main.command()
@out_argument
@click.option(
    "--preview",
    type=OutputFile(),
    help="Save a PNG image of augmented training crops and of the PCA of the colors.",
)
@click.option(
    "--noise",
    type=click.Choice(["paper", "source", "none"]),
    default="paper",
    show_default=True,
    help="Color noise in the preview's training crops.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@force_option
@one_line_errors
def info(out: str, preview: Path | None, noise: str, as_json: bool, force: bool) -> None:
    """Describe a dataset, and draw a preview of it.

    OUT is that of `shard` by default. `--preview` draws training crops as a network gets them, and the color
    statistics.
    """
    check_outputs(force)
    from pipeline import Dataset, open_store, read_manifest

    check_dataset("out", out)
    # A local dataset is opened, which also checks the sizes of its shards; a remote manifest is only read.
    local = preview is not None or open_store(out).local is not None
    dataset = Dataset.open(out) if local else None
    manifest = dataset.manifest if dataset else read_manifest(out)
    if preview is not None and dataset is not None:
        from pipeline import draw_preview
        from pipeline.images.figure import check_figure_file, save_figure

        check_figure_file(preview)
        save_figure(draw_preview(dataset, noise=noise), preview)  # type: ignore[arg-type]  # click checked it
    if as_json:
        echo_lines(facts_json(manifest))
    else:
        print_facts(out, manifest)
        if dataset is not None and (hint := _shuffling(dataset)):
            echo(f"{out}: {hint}")
    if preview is not None:
        echo(f"preview: {preview}", err=as_json)


@main.command()
@click.argument("out", type=_FOLDER)
@click.option(
    "--images", default=2000, show_default=True, type=click.IntRange(1), help="Number of images to draw."
)
@click.option(
    "--seed", default=2012, show_default=True, type=click.IntRange(0), help="Seed of the drawn images."
)
@click.option("--force", is_flag=True, help="Replace images that this command drew; other files in OUT stay.")
@one_line_errors
def demo(out: Path, images: int, seed: int, force: bool) -> None:
    """Draw a small image set to try the toolkit on.

    Writes class folders of ten classes, which differ in shape and texture, to OUT.
    """
    from pipeline.demo import draw_demo

    writes_files()
    started = time.perf_counter()
    with progress_bar("drawing", "images") as show:
        counts = draw_demo(out, images, seed, show, force=force)
    drawn = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    echo(f"{out}: {drawn} images drawn in {time.perf_counter() - started:.1f} s")
