"""Classify image files of any format, without DALI.

Shapes: B batch, V views (1, or 10 for ten crops), S side of the crop, K classes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.arguments import COUNT, checked
from pipeline.errors import RunError, UsageError
from pipeline.sources.base import IMAGE_SUFFIXES, is_image
from trainer.evaluation.probabilities import mean_probabilities, topk_stable
from trainer.inference.preprocess import Crops, Views, as_batch, crops_of_file
from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName


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


@checked(top=COUNT, batch_size=COUNT)
def classify_images(
    models: Sequence[Classifier],
    images: Sequence[Path],
    views: Views = "center",
    top: int = 5,
    batch_size: int = 32,
    exif_rotate: bool = False,
    precision: PrecisionName = "float32",
) -> Iterator[ImagePrediction]:
    """Classify image files; probabilities are averaged over views and networks.

    An image is prepared as those of the dataset that the network was trained on, then cut as the loader cuts
    them: the probabilities are those of an evaluation of a dataset that was prepared from these files.

    Args:
        models: One network, or an ensemble with the same classes, image format and crop; all on one device.
        images: Files of any format that `pipeline.images.codec` reads.
        views: "center" or "ten-crop".
        top: Number of classes to return for each image.
        batch_size: Number of images per forward pass.
        exif_rotate: Whether to rotate images upright by their EXIF orientation; `alexnet-prep shard` does
            so only with `--exif-rotate`.
        precision: Precision of the forward pass.

    Yields:
        One prediction per file, in order; a file that cannot be read yields its error.

    Raises:
        UsageError: `views` is another word, a number is below 1, the networks differ in classes, image format
            or crop, or the device lacks the precision.
        RunError: a network's outputs are not finite, or the GPU is out of memory.
    """
    first = models[0].spec
    shared = ("classes", "crop", "size", "mode", "quality")
    if len({tuple(getattr(model.spec, name) for name in shared) for model in models}) > 1:
        raise UsageError(
            "the networks of an ensemble must share classes, crop, and the images' size, mode and quality; "
            "leave some out"
        )
    for model in models:
        model.eval()
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        crops: dict[Path, Crops] = {}
        errors: dict[Path, str] = {}
        for path in batch:
            try:
                crops[path] = crops_of_file(path, first, views, exif_rotate)
            except UsageError as error:
                errors[path] = str(error)
        guesses = dict(zip(crops, _top_guesses(models, list(crops.values()), top, precision), strict=True))
        for path in batch:
            yield ImagePrediction(path, guesses.get(path, ()), errors.get(path, ""))


def _top_guesses(
    models: Sequence[Classifier], crops: Sequence[Crops], top: int, precision: PrecisionName
) -> list[tuple[Guess, ...]]:
    if not crops:
        return []
    pixels = as_batch(crops).to(models[0].mean.device)
    probabilities = mean_probabilities(models, pixels, precision=precision)
    if not bool(probabilities.isfinite().all()):
        raise RunError(
            "the network's outputs are not finite: its weights diverged in training; use another checkpoint"
        )
    found = topk_stable(probabilities, top)
    spec = models[0].spec
    names = spec.names or spec.classes
    return [
        tuple(Guess(spec.classes[k], names[k], value) for k, value in zip(numbers, row, strict=True))
        for numbers, row in zip(found.classes.tolist(), found.values.tolist(), strict=True)
    ]
