"""Options for how a source of images is read, and its images are stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import section
from cli.common.options import max_bad_option, max_megapixels_option

if TYPE_CHECKING:
    from pipeline import SourceOptions

source_options = section(
    "Reading the source",
    click.option(
        "--layout",
        type=click.Choice(["auto", "images", "classes", "webdataset", "parquet"]),
        default="auto",
        show_default=True,
        help="What is read of SOURCE: images in folders and archives (images), without reading folder names "
        "as splits (classes); tars with labels beside images (webdataset); Parquet files. auto finds it out.",
    ),
    click.option(
        "--splits",
        metavar="SPLIT=PATH,…",
        help="Paths of the splits in SOURCE, such as train=photos,val=held-out.  [default: by their names]",
    ),
    click.option(
        "--labels",
        metavar="FILE",
        help="Table of labels (CSV, TSV, JSON lines or Parquet) with a path and a label in each row.",
    ),
    click.option(
        "--path-column", metavar="NAME", help="Column of paths in --labels.  [default: by its name]"
    ),
    click.option(
        "--label-column", metavar="NAME", help="Column of labels in --labels.  [default: by its name]"
    ),
    click.option(
        "--classes",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Classes in label order, a line each: WNIDs, names or indices; others are left out.",
    ),
    click.option(
        "--val-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of each class to hold out for validation, where SOURCE has no validation split.",
    ),
    click.option(
        "--max-per-class",
        type=click.IntRange(1),
        metavar="N",
        help="Take at most N images of each class and split, chosen by --seed.",
    ),
    click.option(
        "--fraction",
        type=click.FloatRange(0, 1, min_open=True),
        help="Take this share of each class's images, chosen by --seed.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Seed of the shuffle, and of the choice of images.",
    ),
)
"""The options that `source_options_of` reads."""

image_options = section(
    "Images",
    click.option(
        "--size",
        default=256,
        show_default=True,
        type=click.IntRange(8, 4096),
        help="Length of the shorter side of the stored images, in pixels.",
    ),
    click.option(
        "--quality",
        default=95,
        show_default=True,
        type=click.IntRange(1, 100),
        help="Quality of the stored JPEGs.",
    ),
    click.option(
        "--keep-aspect", is_flag=True, help="Store the whole scaled image instead of its center square."
    ),
    click.option(
        "--keep-original",
        is_flag=True,
        help="Store intact RGB JPEGs byte for byte; training then scales their shorter side to --size.",
    ),
    click.option(
        "--exif-rotate", is_flag=True, help="Rotate images by their EXIF orientation.  [default: ignore it]"
    ),
    click.option(
        "--drop-duplicates",
        is_flag=True,
        help="Leave out training images that are validation or test images too.  [default: only report them]",
    ),
    click.option(
        "--shard-samples",
        type=click.IntRange(1),
        help="Number of images per tar.  [default: 2000, fewer for small datasets]",
    ),
    max_megapixels_option,
    max_bad_option,
)
"""How images are stored, and which are skipped."""


def source_options_of(options: dict[str, Any]) -> "SourceOptions":
    """Return how the source is read, by the options of `source_options`, which are removed but for `seed`.

    Raises:
        UsageError: --splits is no list of SPLIT=PATH; the file of --classes cannot be read.
    """
    from pipeline import SourceOptions
    from pipeline.sources.classes import read_class_list

    splits, classes = options.pop("splits"), options.pop("classes")
    names = ("layout", "labels", "path_column", "label_column", "val_fraction", "max_per_class", "fraction")
    return SourceOptions(
        **{name: options.pop(name) for name in names},
        splits=_splits_in(splits) if splits else None,
        classes=read_class_list(classes) if classes else None,
        seed=options["seed"],
    )


def _splits_in(text: str) -> dict[str, str]:
    from pipeline import UsageError

    found: dict[str, str] = {}
    for part in text.split(","):
        split, equals, path = part.partition("=")
        if not equals or not path or split in found:
            raise UsageError(
                f"--splits {text}: give each split once with its path, such as train=photos,val=held-out"
            )
        found[split.strip()] = path
    return found
