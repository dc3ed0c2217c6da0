"""Check a listing, order its classes, assign keys, and choose a part of the images where asked to."""

import os
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.base import AS_FOUND, Image, Listing, Sample, Source, SourceOptions
from pipeline.sources.classes import chosen_classes, class_order
from pipeline.sources.keys import unique_keys
from pipeline.sources.labelers.splits import SPLITS
from pipeline.sources.subset import part_of_each_class, split_off


def build_source(root: str, listing: Listing, options: SourceOptions = AS_FOUND) -> Source:
    """Check a listing, order its classes, assign keys, and choose a part of the images if asked to.

    Args:
        root: Path or URL of the source.
        listing: Images and classes of the source. Its images are consumed: they are removed as they are
            turned into samples.
        options: `classes`, `val_fraction`, `max_per_class`, `fraction` and `seed` are used.

    Raises:
        UsageError: No images; one class; a class without training images where others have some; a name that
            is not UTF-8; a class to choose is unknown; a share or number of images that is out of range or
            leaves none; `val_fraction` for a source with validation images or without training images.
    """
    _refuse_second_val(root, listing, options)
    _check_names(root, listing)
    images = listing.images
    ids = list(listing.classes or class_order(str(i.label) for i in chain.from_iterable(images.values())))
    if options.classes is not None and any(images.values()):
        ids = chosen_classes(options.classes, ids, listing.names)
        _leave_out_others(listing, set(ids))
    _check_classes(root, ids, listing)
    notes = list(listing.notes)
    splits = _samples(listing, {class_id: label for label, class_id in enumerate(ids)}, notes)
    if options.fraction is not None or options.max_per_class is not None:
        whole = sum(map(len, splits.values()))
        splits = {
            split: part_of_each_class(samples, options.fraction, options.max_per_class, options.seed)
            for split, samples in splits.items()
        }
        notes.append(f"{sum(map(len, splits.values())):,} of {whole:,} images are chosen")
    if options.val_fraction is not None:
        if "train" not in splits:
            raise UsageError(
                f"--val-fraction {options.val_fraction:g} was asked for, but {root} has no training images, "
                f"only {', '.join(splits)}; leave the option out"
            )
        splits = splits | split_off(splits["train"], options.val_fraction, options.seed)
        missing = len(ids) - len({sample.label for sample in splits["val"]})
        if missing:
            notes.append(
                f"val: {missing} of {len(ids)} classes are too small for --val-fraction "
                f"{options.val_fraction:g}"
            )
    if "train" not in splits:
        notes.append("no training images: this makes a dataset for evaluation only")
    classes = tuple(ClassInfo(i, listing.names.get(i, i)) for i in ids)
    return Source(root, listing.layout, classes, splits, listing.containers, notes, listing.left_out, options)


def _samples(listing: Listing, label_of: dict[str, int], notes: list[str]) -> dict[str, list[Sample]]:
    """Turn images into samples, sorted by container and path, with keys unique across all splits."""
    for images in listing.images.values():
        # Stable sorts one after the other, because tuples to compare would take as much memory as the images.
        for name in ("offset", "path", "container"):
            images.sort(key=attrgetter(name))
    order = [split for split in SPLITS if listing.images.get(split)]
    keys, renamed = unique_keys([listing.images[split] for split in order])
    if renamed:
        notes.append(f"{renamed:,} images share a file name with another; their keys have the class in front")
    keys.reverse()
    splits: dict[str, list[Sample]] = {}
    for split in order:
        samples = splits[split] = []
        images = listing.images.pop(split)
        images.reverse()
        while images:  # popping frees each image as its sample is made
            i = images.pop()
            samples.append(Sample(i.path, label_of[str(i.label)], keys.pop(), i.size, i.container, i.offset))
    return splits


def _leave_out_others(listing: Listing, wanted: set[str]) -> None:
    """Leave out the images of classes that --classes does not name."""
    for split, images in listing.images.items():
        for image in images:
            if image.label not in wanted:
                listing.left_out.add(_shown(listing, image), "its class is not in --classes")
        listing.images[split] = [image for image in images if image.label in wanted]


def _refuse_second_val(root: str, listing: Listing, options: SourceOptions) -> None:
    fraction = options.val_fraction
    if fraction is not None and listing.images.get("val"):
        raise UsageError(
            f"--val-fraction {fraction:g} was asked for, but {root} has its own validation "
            "images; leave the option out"
        )


def _check_names(root: str, listing: Listing) -> None:
    """Refuse names that are not UTF-8: the manifest and report.csv are UTF-8 and could not hold them."""
    images = chain.from_iterable(listing.images.values())
    names = chain.from_iterable((i.path, str(i.label)) for i in images)
    for name in chain(listing.classes or (), names):
        try:
            name.isascii() or name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name)
            raise UsageError(f"source {root}: the name {shown!r} is not UTF-8; rename it") from error


def _check_classes(root: str, ids: Sequence[str], listing: Listing) -> None:
    if not any(listing.images.values()):
        raise UsageError(
            f"source {root}: no images found{_left_out(listing)}; expected image files in CLASS/ or "
            "{train,val}/CLASS/ folders, ImageNet's archives, tars or zips of such folders, Parquet files or "
            "WebDataset tars"
        )
    read_as = "; ".join(listing.notes)
    if len(ids) < 2:
        raise UsageError(
            f"source {root}: found one class ({ids[0]}), read as {read_as}; a classifier needs at least two: "
            "name the folder that holds all classes, or a table of labels with --labels FILE"
        )
    if not listing.images.get("train"):  # an evaluation set, which may lack images of some classes
        return
    trained = {image.label for image in listing.images["train"]}
    empty = [class_id for class_id in ids if class_id not in trained]
    if not empty:
        return
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    for split in SPLITS[1:]:
        images = [image for image in listing.images.get(split, ()) if image.label in set(empty)]
        if images:
            raise UsageError(
                f"source {root}: no training images for {shown}, but {len(images):,} in {split} (such as "
                f"{_shown(listing, images[0])}), read as {read_as}; add training images, or choose classes "
                "with --classes FILE"
            )
    raise UsageError(
        f"source {root}: no training images for {shown}; add some, or choose classes with --classes FILE"
    )


def _left_out(listing: Listing) -> str:
    return "".join(f"; {note}" for note in listing.left_out.notes()[:3])


def _shown(listing: Listing, image: Image) -> str:
    inside = listing.containers[image.container].path if image.container >= 0 else ""
    return f"{inside}/{image.path}".lstrip("/")
