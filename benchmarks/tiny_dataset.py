"""Make a dataset of very many copies of one image, for benchmarks/startup.py and bucket.py."""

import io
import json
import sys
from pathlib import Path

import common
import numpy as np
from PIL import Image

from pipeline.dataset.manifest import (
    FORMAT_VERSION,
    ClassInfo,
    ImageFormat,
    Manifest,
    SourceInfo,
    write_manifest,
)
from pipeline.dataset.shards import describe, write_shard
from pipeline.images.statistics import Moments, statistics_of

SIZE = 256
_CLASSES = 1000


def at(work: Path, samples: int, tars: int, *, noise: bool = False) -> Path:
    """Make the dataset, or reuse that of an earlier run with the same options; return its folder.

    Args:
        work: Folder in which the dataset's is made.
        samples: Number of samples.
        tars: Number of tars.
        noise: Make images of noise, of 55 kB, instead of flat ones as small as possible.
    """
    folder, note = work / "dataset", work / "dataset.json"
    wanted = json.dumps({"samples": samples, "tars": tars, "noise": noise})
    if not (note.is_file() and note.read_text() == wanted):
        note.unlink(missing_ok=True)
        print("making the tars ...", file=sys.stderr)
        _write(common.fresh(folder), samples, tars, _noise_jpeg() if noise else _flat_jpeg())
        note.write_text(wanted)
    return folder


def _write(folder: Path, samples: int, tars: int, jpeg: bytes) -> None:
    """Write an image many times, with labels and distinct names like ImageNet's."""
    (folder / "train").mkdir(parents=True)
    classes = [f"n{10_000_000 + 7919 * number:08d}" for number in range(_CLASSES)]
    shards = []
    for tar in range(tars):
        path = folder / "train" / f"train-{tar:06d}.tar"
        first, last = samples * tar // tars, samples * (tar + 1) // tars
        with write_shard(path, 4) as writer:
            for number in range(first, last):
                label = number * 7919 % len(classes)
                writer.add(f"{classes[label]}_{number}", jpeg, label)
        shards.append(describe(folder, path, last - first))
    moments = Moments()
    moments.add(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    manifest = Manifest(
        format=FORMAT_VERSION,
        image=ImageFormat(SIZE, "square", 95),
        classes=tuple(ClassInfo(name, name) for name in classes),
        label_width=4,
        splits={"train": tuple(shards)},
        statistics=statistics_of(moments),
        seed=0,
        source=SourceInfo("benchmark", ""),
        settings={},
        versions={},
    )
    write_manifest(folder, manifest)


def _flat_jpeg() -> bytes:
    """Return a gray JPEG as small as possible."""
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 128).save(buffer, "JPEG", optimize=True)
    return buffer.getvalue()


def _noise_jpeg() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
