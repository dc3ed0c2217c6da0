"""Feeder for webdataset with Pillow in a DataLoader, run by benchmarks/loader.py.

Its transforms repeat torchvision's, because torchvision cannot be installed everywhere: `ToTensor` (scales to
0..1) and `Normalize` (copies, then applies mean and std).
"""

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from feeder import AREA, CROP, RATIO, SIZE, Order, read_order, serve
from PIL import Image

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.27)
DIRECTIONS = torch.eye(3)


def main() -> None:
    serve(batches(read_order(__doc__)))


def batches(order: Order) -> Iterator[int]:
    """Yield the size of each float32 NCHW batch."""
    tars = sorted(map(str, Path(order.data, "train").glob("*.tar")))
    dataset = (
        webdataset.WebDataset(tars, resampled=True, shardshuffle=False, empty_check=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(paper if order.augmentation == "paper" else resized, int)
        .batched(order.batch, partial=False)
    )
    torch.set_num_threads(1)
    for _, labels in webdataset.WebLoader(dataset, batch_size=None, num_workers=order.threads):
        yield len(labels)


def paper(data: bytes) -> torch.Tensor:
    """Scale the shorter side to 256 if needed, then random 224 crop, flip, color noise and normalization."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if min(width, height) != SIZE:
        scale = SIZE / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        width, height = image.size
    left, top = random.randint(0, width - CROP), random.randint(0, height - CROP)
    pixels = _tensor(_flipped(image.crop((left, top, left + CROP, top + CROP))))
    shift = DIRECTIONS @ torch.randn(3)
    return _normalized(pixels.add_(shift[:, None, None]))


def resized(data: bytes) -> torch.Tensor:
    """Apply a random-resized crop, flip and normalization."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, width, height = _box(*image.size)
    part = image.crop((left, top, left + width, top + height))
    return _normalized(_tensor(_flipped(part.resize((CROP, CROP), Image.Resampling.BILINEAR))))


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _tensor(image: Image.Image) -> torch.Tensor:
    """Convert to a float32 (3, H, W) tensor in 0..1, like torchvision's `ToTensor`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Subtract MEAN and divide by STD on a copy, like torchvision's `Normalize`."""
    return pixels.clone().sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


if __name__ == "__main__":
    main()
