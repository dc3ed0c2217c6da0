"""Pictures in, classes out: files of any format, without DALI.

Shapes: B batch, V views, S crop, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.errors import UsageError
from trainer.classifier import Classifier
from trainer.crops import CROPS, crops_of_file
from trainer.metrics import likeliest

Views = Literal["centre", "ten-crop"]

# What folders are searched for; files that are named themselves may have any name.
_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])


@dataclass(frozen=True)
class Guess:
    """A class id, its name where it is known (else the id), and the probability, 0..1."""

    id: str
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """A picture's likeliest classes in order, or why it has none.

    Attributes:
        picture: the file.
        guesses: likeliest first; empty where `error` says why.
        error: one line, or ''.
    """

    picture: Path
    guesses: tuple[Guess, ...]
    error: str = ""


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as named, and of folders all pictures at any depth, in order; hidden ones are left out.

    Raises:
        UsageError: a folder without pictures.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not inside:
            raise UsageError(f"{path}: holds no pictures ({', '.join(sorted(_SUFFIXES))}); name others")
        found += inside
    return found


def classify_pictures(
    nets: Sequence[Classifier],
    pictures: Sequence[Path],
    views: Views = "centre",
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Answer]:
    """Classify files, one answer for each in order; probabilities are averaged over views and nets.

    A picture is prepared as `alexnet-prep shard` does it: centre square, scaled by area or cubic
    interpolation to the size that the net was trained on, then cut.

    Args:
        nets: one, or an ensemble of the same classes, size and crop.
        pictures: files of any format that `pipeline.codec` reads.
        views: "centre", or "ten-crop".
        top: classes in each answer.
        batch_size: pictures at a time.

    Raises:
        UsageError: nets that do not share classes, size and crop.
    """
    first = nets[0].spec
    for net in nets:
        if (net.spec.classes, net.spec.size, net.spec.crop) != (first.classes, first.size, first.crop):
            raise UsageError("the nets of an ensemble must share their classes, picture size and crop")
        net.eval()
    names = first.names or first.classes
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        crops: list[CROPS | str] = []
        for path in batch:
            try:
                crops.append(crops_of_file(path, first, views))
            except UsageError as error:
                crops.append(str(error))
        good = [each for each in crops if not isinstance(each, str)]
        guesses = iter(_guesses(nets, good, top))
        for path, each in zip(batch, crops, strict=True):
            if isinstance(each, str):
                yield Answer(path, (), each)
                continue
            numbers, values = next(guesses)
            found = (Guess(first.classes[k], names[k], p) for k, p in zip(numbers, values, strict=True))
            yield Answer(path, tuple(found))


def _guesses(
    nets: Sequence[Classifier], crops: Sequence[CROPS], top: int
) -> list[tuple[list[int], list[float]]]:
    """Class numbers and probabilities of each picture, likeliest first."""
    if not crops:
        return []
    views = torch.from_numpy(np.stack(crops)).permute(1, 0, 4, 2, 3).float()  # (V, B, 3, S, S)
    with torch.inference_mode():
        each = [[net.classify(view).double().softmax(dim=1) for view in views] for net in nets]
        total = torch.stack([torch.stack(one).mean(dim=0) for one in each]).mean(dim=0)
    values, classes = likeliest(total, top)
    return list(zip(classes.tolist(), values.tolist(), strict=True))
