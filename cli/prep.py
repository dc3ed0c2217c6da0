"""`alexnet-prep`: from pictures to shards."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.console import check_folder, one_line_errors, progress_bar, require_dali
from pipeline.cores import usable_cores

if TYPE_CHECKING:
    from pipeline import Dataset, Manifest

_FOLDER = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-prep")
def main() -> None:
    """Turn pictures into WebDataset shards with RGB statistics, and look at the result."""


@main.command()
@click.argument("source", type=_FOLDER)
@click.argument("out", type=_FOLDER)
@click.option(
    "--size",
    default=256,
    show_default=True,
    type=click.IntRange(8, 4096),
    help="Shorter side in pixels.",
)
@click.option("--quality", default=95, show_default=True, type=click.IntRange(1, 100), help="JPEG quality.")
@click.option("--keep-aspect", is_flag=True, help="Keep the whole picture instead of its centre square.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of each class to hold out for validation, where SOURCE has no validation folder.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of the shuffle and of --val-fraction.",
)
@click.option(
    "--shard-samples",
    type=click.IntRange(1),
    help="Pictures per tar.  [default: 2000, fewer for small datasets]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    help="Processes; the output does not depend on it.  [default: all cores]",
)
@click.option(
    "--max-bad",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of undecodable pictures above which the job fails.",
)
@click.option(
    "--max-megapixels",
    default=100.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Refuse larger pictures before memory is taken for them.",
)
@one_line_errors
def shard(
    source: Path,
    out: Path,
    size: int,
    quality: int,
    keep_aspect: bool,
    val_fraction: float | None,
    seed: int,
    shard_samples: int | None,
    workers: int,
    max_bad: float,
    max_megapixels: float,
) -> None:
    """Prepare SOURCE, a folder of class folders, as a dataset in OUT.

    SOURCE holds {train,val|validation,test}/CLASS/* or CLASS/*. Every picture is decoded completely,
    scaled, cut to its centre square and shuffled into tars. A stopped job goes on where it was when the
    same command runs again.
    """
    from pipeline import Options, prepare, read_class_folders

    options = Options(size, keep_aspect, quality, val_fraction, seed, shard_samples, max_megapixels)
    found = read_class_folders(source, val_fraction, seed)
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in found.splits.items())
    click.echo(f"{source}: {counts} pictures, {len(found.classes)} classes ({found.layout})")
    for note in found.notes:
        click.echo(f"note: {note}")
    finished_before = (out / "manifest.json").is_file()
    started = time.perf_counter()
    with progress_bar("preparing", "pictures") as show:
        manifest = prepare(found, out, options, workers=workers, max_bad=max_bad, progress=show)
    _summarise(out, manifest)
    if finished_before:
        click.echo(f"{out}: was complete already")
    else:
        click.echo(f"{out}: complete in {time.perf_counter() - started:.1f} s")


@main.command()
@click.argument("out", type=_FOLDER)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save a contact sheet of augmented training crops as PNG.",
)
@click.option(
    "--noise",
    type=click.Choice(["paper", "source", "none"]),
    default="paper",
    show_default=True,
    help="Colour noise of the preview.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@one_line_errors
def info(out: Path, preview: Path | None, noise: str, as_json: bool) -> None:
    """Print what the dataset in OUT is; `--preview` shows what a network will see of it."""
    from pipeline import Dataset

    dataset = Dataset.open(out)
    if as_json:
        click.echo(json.dumps(_facts(dataset), indent=1))
    else:
        _print_facts(dataset)
    if preview is not None:
        require_dali()
        check_folder(preview)
        from pipeline import draw_preview
        from pipeline.pictures import save_png

        save_png(draw_preview(dataset, noise=noise), preview)  # type: ignore[arg-type]  # click checked it
        click.echo(f"preview: {preview}", err=as_json)


@main.command()
@click.argument("out", type=_FOLDER)
@click.option("--images", default=2000, show_default=True, type=click.IntRange(1), help="Pictures in all.")
@click.option("--seed", default=2012, show_default=True, type=click.IntRange(0), help="Of the drawing.")
@one_line_errors
def demo(out: Path, images: int, seed: int) -> None:
    """Draw a demonstration source into OUT: ten classes that shape and texture tell apart."""
    from pipeline.demo import draw_demo

    started = time.perf_counter()
    with progress_bar("drawing", "pictures") as show:
        counts = draw_demo(out, images, seed, progress=lambda done: show(done, images))
    drawn = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    click.echo(f"{out}: {drawn} pictures drawn in {time.perf_counter() - started:.1f} s")


def _summarise(out: Path, manifest: "Manifest") -> None:
    from pipeline import read_report

    actions = [row["action"] for row in read_report(out)]
    for split, shards in manifest.splits.items():
        size = sum(shard.bytes for shard in shards)
        click.echo(f"{split}: {manifest.samples(split):,} pictures in {len(shards)} shards, {_bytes(size)}")
    if actions:
        click.echo(
            f"pictures skipped: {actions.count('skipped')}, converted: {actions.count('repaired')}; "
            f"see {out / 'report.csv'}"
        )


def _print_facts(dataset: "Dataset") -> None:
    manifest, statistics = dataset.manifest, dataset.statistics
    image = manifest.image
    shape = f"{image.size} px squares" if image.mode == "square" else f"shorter side {image.size} px"
    names = ", ".join(info.name for info in manifest.classes[:4])
    rows = [
        ("dataset", f"{dataset.root} (format {manifest.format}, made by {_maker(manifest)})"),
        ("pictures", f"{shape}, JPEG quality {image.quality}, {image.subsampling}"),
        ("classes", f"{len(manifest.classes)}: {names}{', …' if len(manifest.classes) > 4 else ''}"),
    ]
    for split, shards in manifest.splits.items():
        size = _bytes(sum(shard.bytes for shard in shards))
        rows.append((split, f"{manifest.samples(split):,} pictures in {len(shards)} shards, {size}"))
    rows.append(("mean", "R {:.2f}  G {:.2f}  B {:.2f}".format(*statistics.mean)))
    for number, (deviation, vector) in enumerate(
        zip(statistics.deviations, statistics.eigenvectors, strict=True), start=1
    ):
        direction = "  ".join(f"{name} {x:+.3f}" for name, x in zip("RGB", vector, strict=True))
        rows.append((f"colour {number}", f"deviation {deviation:6.2f} along {direction}"))
    rows.append(("seed", str(manifest.seed)))
    for name, text in rows:
        click.echo(f"{click.style(f'{name:<9}', bold=True)} {text}")


def _facts(dataset: "Dataset") -> dict[str, object]:
    import msgspec

    facts: dict[str, object] = msgspec.to_builtins(dataset.manifest)
    facts["samples"] = {split: dataset.samples(split) for split in dataset.manifest.splits}
    return facts


def _maker(manifest: "Manifest") -> str:
    return f"alexnet-toolkit {manifest.versions.get('alexnet-toolkit', 'unknown')}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
