"""Classify image files of any format, without DALI.

Shapes: B batch, V views (1, or 10 for ten crops), S side of the crop, K classes.
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
    """One predicted class of an image.

    Attributes:
        id: Class id, such as a WNID.
        name: Readable name of the class, or its id if the checkpoint has no names.
        probability: Probability of the class, 0..1.
    """

    id: str
    name: str
    probability: float


@dataclass(frozen=True)
class ImagePrediction:
    """The most probable classes of an image file, or the error that prevented reading it.

    Attributes:
        image: Path of the file.
        guesses: Predicted classes, most probable first; empty if there was an error.
        error: Error message of one line, or "".
    """

    image: Path
    guesses: tuple[Guess, ...]
    error: str = ""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List image files: files as given, whatever their suffix, and folders searched recursively.

    In a folder, images are recognized by their suffix, and hidden files and folders are skipped. A dangling
    symbolic link counts as an image, so that it is reported as unreadable.

    Returns:
        Files in the order of `paths`, sorted within each folder.

    Raises:
        UsageError: a folder has no images or cannot be read.
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
            # `is_file` skips named pipes, whose reading would block forever.
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
    """Classify image files; probabilities are averaged over views and networks.

    An image is prepared as `alexnet-prep shard` does: the center square is scaled by area or cubic
    interpolation to the size that the network was trained on, then cropped.

    Args:
        models: One network, or an ensemble with the same classes, image size and crop; all on one device.
        images: Files of any format that `pipeline.images.codec` reads.
        views: "center" or "ten-crop".
        top: Number of classes to return for each image.
        batch_size: Number of images per forward pass.
        exif_rotate: Whether to rotate images upright by their EXIF orientation; `alexnet-prep shard` does
            so only with `--exif-rotate`.

    Yields:
        One prediction per file, in order; a file that cannot be read yields its error.

    Raises:
        UsageError: the networks differ in classes, image size or crop.
        RunError: a network's outputs are not finite.
    """
    first = models[0].spec
    for model in models:
        if (model.spec.classes, model.spec.size, model.spec.crop) != (first.classes, first.size, first.crop):
            raise UsageError(
                "the networks of an ensemble must share classes, image size and crop; leave some out"
            )
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
        readable = [each for each in crops if not isinstance(each, str)]
        top_classes = iter(_top_classes(models, readable, top))
        for path, each in zip(batch, crops, strict=True):
            if isinstance(each, str):
                yield ImagePrediction(path, (), each)
                continue
            numbers, values = next(top_classes)
            found = (Guess(first.classes[k], names[k], p) for k, p in zip(numbers, values, strict=True))
            yield ImagePrediction(path, tuple(found))


def _top_classes(
    models: Sequence[Classifier], crops: Sequence[CROPS], top: int
) -> list[tuple[list[int], list[float]]]:
    """Return the `top` class numbers and probabilities of each image, most probable first."""
    if not crops:
        return []
    pixels = torch.from_numpy(np.stack(crops)).to(models[0].mean.device)
    views = pixels.permute(1, 0, 4, 2, 3).contiguous().float()  # (V, B, 3, S, S)
    with torch.inference_mode():
        each = [[model.classify(view).double().softmax(dim=1) for view in views] for model in models]
        total = torch.stack([torch.stack(one).mean(dim=0) for one in each]).mean(dim=0)
    if not bool(total.isfinite().all()):
        raise RunError(
            "the network's outputs are not finite: its weights diverged in training; use another checkpoint"
        )
    values, classes = topk_stable(total, top)
    return list(zip(classes.tolist(), values.tolist(), strict=True))
