"""Describe a dataset as text or JSON."""

import json
from typing import TYPE_CHECKING

from cli.common.console import echo
from pipeline.text import in_bytes, number_of

if TYPE_CHECKING:
    from pipeline import Manifest, Statistics
    from pipeline.dataset.manifest import Duplicates, ImageFormat


def print_facts(out: str, manifest: "Manifest") -> None:
    """Print a dataset's facts (source, image format, classes, splits, statistics), one line for each."""
    image = manifest.image
    names = ", ".join(info.name for info in manifest.classes[:4])
    maker = manifest.versions.get("alexnet-toolkit", "unknown")
    rows = [
        ("dataset", f"{out} (format {manifest.format}, made by alexnet-toolkit {maker})"),
        ("source", manifest.source.layout),
        ("images", _images(image)),
        ("classes", f"{len(manifest.classes)}: {names}{', …' if len(manifest.classes) > 4 else ''}"),
    ]
    for split, shards in manifest.splits.items():
        size = in_bytes(sum(shard.bytes for shard in shards))
        rows.append((split, f"{_images_in(split, manifest)}, {size}"))
    if manifest.duplicates is not None:
        rows.append(("copies", _duplicates(manifest.duplicates)))
    print_rows([*rows, *statistics_rows(manifest.statistics), ("seed", str(manifest.seed))])


def _images_in(split: str, manifest: "Manifest") -> str:
    shards = number_of(len(manifest.splits[split]), "shard")
    return f"{number_of(manifest.samples(split), 'image')} in {shards}"


def _images(image: "ImageFormat") -> str:
    shape = {
        "square": f"{image.size} px squares",
        "aspect": f"shorter side {image.size} px",
        "original": f"original size, scaled on loading to a shorter side of {image.size} px",
    }[image.mode]
    return f"{shape}, JPEG quality {image.quality}, {image.subsampling}" if image.quality else shape


def statistics_rows(statistics: "Statistics | None") -> list[tuple[str, str]]:
    """Return (name, text) rows of the RGB mean and the three principal color directions, in 0..255 units."""
    if statistics is None:
        return [("mean", "not measured: there is no training split")]
    mean = "R {:.2f}  G {:.2f}  B {:.2f}".format(*statistics.mean)
    rows = [("mean", f"{mean}  (measured on {statistics.measured_on} pixels)")]
    for number, (deviation, vector) in enumerate(
        zip(statistics.deviations, statistics.eigenvectors, strict=True), start=1
    ):
        direction = "  ".join(f"{name} {x:+.3f}" for name, x in zip("RGB", vector, strict=True))
        rows.append((f"color {number}", f"deviation {deviation:6.2f} along {direction}"))
    return rows


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print (name, text) rows as two aligned columns, the names in bold."""
    for name, text in rows:
        echo(f" {text}", bold=f"{name:<9}")


def facts_json(manifest: "Manifest") -> str:
    """Return the manifest as JSON, with the number of samples of each split under "samples"."""
    import msgspec

    facts: dict[str, object] = msgspec.to_builtins(manifest)
    facts["samples"] = {split: manifest.samples(split) for split in manifest.splits}
    return json.dumps(facts, indent=1)


def print_summary(out: str, manifest: "Manifest") -> None:
    """Print a new dataset's splits, and how many images were skipped, converted or found twice."""
    from pipeline import read_report

    actions = [row["action"] for row in read_report(out)]
    for split, shards in manifest.splits.items():
        size = sum(shard.bytes for shard in shards)
        echo(f"{split}: {_images_in(split, manifest)}, {in_bytes(size)}")
    if actions:
        echo(
            f"images skipped: {actions.count('skipped')}, converted: {actions.count('repaired')}; "
            f"see {out.rstrip('/')}/report.csv"
        )
    if manifest.duplicates is not None:
        echo(f"copies: {_duplicates(manifest.duplicates)}")


def _duplicates(found: "Duplicates") -> str:
    """Return the numbers of images with the same bytes, in words."""
    parts = [f"{split} images in train: {count:,}" for split, count in found.in_train.items()]
    parts.append(f"images with two labels: {found.two_labels:,}")
    if found.dropped:
        parts.append(f"training images left out: {found.dropped:,}")
    return ", ".join(parts)
