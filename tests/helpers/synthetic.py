"""Datasets of synthetic images, from whose pixels a test sees how the loader cropped and flipped them."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import Dataset, Manifest
from pipeline.dataset.manifest import FORMAT_VERSION, ClassInfo, ImageFormat, SourceInfo, write_manifest
from pipeline.dataset.shards import describe, write_shard
from pipeline.images.codec import encode
from pipeline.images.statistics import Moments, statistics_of

CLASSES = 3


def gradient(height, width):
    """Image with red = x, green = y (one gray level per pixel), blue = 128; uint8 (height, width, 3)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = np.arange(width)[None, :]
    image[:, :, 1] = np.arange(height)[:, None]
    image[:, :, 2] = 128
    return image


def write_dataset(folder: Path, splits, size, shards=2, mode="square"):
    """Write split → uint8 images as a dataset; sample k of a split has key SPLIT-k and label k % 3."""
    moments = Moments()
    written = {}
    for split, images in splits.items():
        (folder / split).mkdir(parents=True)
        for image in images if split == "train" else ():
            moments.add(image)
        numbers = np.array_split(np.arange(len(images)), min(shards, len(images)))
        for number, members in enumerate(numbers):
            tar = folder / split / f"{split}-{number:06d}.tar"
            with write_shard(tar, 4) as writer:
                for k in members:
                    writer.add(f"{split}-{k}", encode(images[k], 95), int(k) % CLASSES)
            written.setdefault(split, []).append(describe(folder, tar, len(members)))
    manifest = Manifest(
        format=FORMAT_VERSION,
        image=ImageFormat(size, mode, 95),
        classes=tuple(ClassInfo(name, name) for name in "abc"),
        label_width=4,
        splits={split: tuple(done) for split, done in written.items()},
        statistics=statistics_of(moments) if "train" in splits else None,
        seed=0,
        source=SourceInfo("synthetic", ""),
        settings={},
        versions={},
    )
    write_manifest(folder, manifest)
    return Dataset.open(folder)


def tiny_images(count, size=16, seed=0):
    """Images of one random color each, which decode quickly."""
    colors = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return list(np.broadcast_to(colors, (count, size, size, 3)).copy())


def photographs(count, height, width, seed=0):
    """Draw smooth random color fields, in which no two crops are alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    return [np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC)) for s in small]
