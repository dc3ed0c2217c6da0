"""Images in, classes out: files of any format, without DALI.

Shapes: B batch, V views, S crop, K classes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.errors import RunError, UsageError
from pipeline.sources.base import IMAGE_SUFFIXES, is_image
from trainer.evaluation.metrics import topk_stable
from trainer.inference.preprocess import CROPS, crops_of_file
from trainer.models.classifier import Classifier

Views = Literal["center", "ten-crop"]


@dataclass(frozen=True)
class Guess:
    """A class id, its name where it is known (else the id), and the probability, 0..1."""

    id: str
    name: str
    probability: float


@dataclass(frozen=True)
class ImagePrediction:
    """An image's likeliest classes in order, or why it has none.

    Attributes:
        image: the file.
        guesses: likeliest first; empty where `error` says why.
        error: one line, or ''.
    """

    image: Path
    guesses: tuple[Guess, ...]
    error: str = ""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as named, whatever they are called, and of folders all images at any depth, in order.

    In a folder, images are told by their suffix, and hidden names are left out. A link that leads nowhere
    is kept: it is an image that cannot be read.

    Raises:
        UsageError: a folder without images, or one that cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(_images_in(path))
        if not inside:
            raise UsageError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); name others")
        found += inside
    return found


def _images_in(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(at, name)
            # A pipe would never end.
            if not name.startswith(".") and is_image(name) and (file.is_file() or file.is_symlink()):
                yield file


def _refuse_folder(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error


def classify_images(
    models: Sequence[Classifier],
    images: Sequence[Path],
    views: Views = "center",
    top: int = 5,
    batch_size: int = 32,
    exif_rotate: bool = False,
) -> Iterator[ImagePrediction]:
    """Classify files, one answer for each in order; probabilities are averaged over views and networks.

    An image is prepared as `alexnet-prep shard` does it: center square, scaled by area or cubic
    interpolation to the size that the network was trained on, then cut.

    Args:
        models: one, or an ensemble of the same classes, size and crop; on any device, all on one.
        images: files of any format that `pipeline.images.codec` reads.
        views: "center", or "ten-crop".
        top: classes in each answer.
        batch_size: images at a time.
        exif_rotate: turn images upright as their EXIF says, which `alexnet-prep shard` does on request.

    Raises:
        UsageError: networks that do not share classes, size and crop.
        RunError: a network's outputs are not numbers.
    """
    first = models[0].spec
    for model in models:
        if (model.spec.classes, model.spec.size, model.spec.crop) != (first.classes, first.size, first.crop):
            raise UsageError("the networks of an ensemble must share their classes, image size and crop")
        model.eval()
    names = first.names or first.classes
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        crops: list[CROPS | str] = []
        for path in batch:
            try:
                crops.append(crops_of_file(path, first, views, exif_rotate))
            except UsageError as error:
                crops.append(str(error))
        good = [each for each in crops if not isinstance(each, str)]
        guesses = iter(_guesses(models, good, top))
        for path, each in zip(batch, crops, strict=True):
            if isinstance(each, str):
                yield ImagePrediction(path, (), each)
                continue
            numbers, values = next(guesses)
            found = (Guess(first.classes[k], names[k], p) for k, p in zip(numbers, values, strict=True))
            yield ImagePrediction(path, tuple(found))


def _guesses(
    models: Sequence[Classifier], crops: Sequence[CROPS], top: int
) -> list[tuple[list[int], list[float]]]:
    """Class numbers and probabilities of each image, likeliest first."""
    if not crops:
        return []
    pixels = torch.from_numpy(np.stack(crops)).to(models[0].mean.device)
    views = pixels.permute(1, 0, 4, 2, 3).contiguous().float()  # (V, B, 3, S, S)
    with torch.inference_mode():
        each = [[model.classify(view).double().softmax(dim=1) for view in views] for model in models]
        total = torch.stack([torch.stack(one).mean(dim=0) for one in each]).mean(dim=0)
    if not bool(total.isfinite().all()):
        raise RunError("the network's outputs are not numbers: its weights diverged in training; use another")
    values, classes = topk_stable(total, top)
    return list(zip(classes.tolist(), values.tolist(), strict=True))
