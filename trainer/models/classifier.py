"""The classifier: a network together with the preprocessing with which it was trained.

Shapes: B batch, S crop.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.arguments import check_record
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import ImageMode
from pipeline.loader.views import TrainView, check_crop, color_noise
from trainer.models.alexnet import build_model
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Spec:
    """Everything besides the weights that is needed to rebuild a classifier from a checkpoint.

    Attributes:
        arch: Name of the architecture, see `trainer.models.alexnet.build_model`.
        width: Factor on hidden channels and units.
        crop: Side of the input in pixels.
        classes: Class IDs in label order.
        size: Shorter side, in pixels, of the images from which crops are cut.
        mean: (R, G, B) subtracted, in gray levels 0..255; zeros if a mean image is subtracted instead.
        std: (R, G, B) by which channels are divided, in gray levels.
        mean_image: Whether a mean image is subtracted.
        names: Readable class names in label order, or empty if they are not known.
        mode: Mode in which these images were stored, see `pipeline.dataset.manifest.ImageFormat`.
        quality: Their JPEG quality, or None if it is not known.

    Raises:
        ValueError: `names` and `classes` differ in length.
        UsageError: `mode` is another word.
    """

    arch: str
    width: float
    crop: int
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mean_image: bool
    names: tuple[str, ...] = ()
    mode: ImageMode = "square"
    quality: int | None = None

    def __post_init__(self) -> None:
        check_record(self)
        if self.names and len(self.names) != len(self.classes):
            raise ValueError(f"{len(self.names)} names for {len(self.classes)} classes")


class Classifier(nn.Module):
    """A network with its preprocessing.

    `forward` takes batches from the training loader, which has already subtracted the mean per channel,
    added color noise, and divided by std; in float64 it has only added the noise, and `inputs` does the rest.
    If the recipe has a mean image, `forward` subtracts it first, on the device and inside the compiled graph.
    `classify` takes pixels 0..255 and does all preprocessing.

    Attributes:
        spec: Architecture and preprocessing.
        model: The network: preprocessed images (B, 3, S, S) → logits (B, classes).
        divisor: Divisor of the training view's color noise, 1 without noise; `train_view` sets it.
        mean_image: (3, S, S) in gray levels, or None; like weights, `mean` and `std` it is float32, or
            float64 after `to_float64`.
        mean: (3, 1, 1) in gray levels.
        std: (3, 1, 1) in gray levels.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.model = build_model(spec.arch, len(spec.classes), spec.width, spec.crop)
        self.divisor = 1.0
        image = torch.zeros(3, spec.crop, spec.crop) if spec.mean_image else None
        self.register_buffer("mean_image", image)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.mean_image: Tensor | None
        self.mean: Tensor
        self.std: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and preprocessing: float32 or float64."""
        return self.mean.dtype

    def to_float64(self) -> None:
        """Convert weights and preprocessing to float64; mean and std get the digits that float32 lacks."""
        self.double()
        for buffer, values in ((self.mean, self.spec.mean), (self.std, self.spec.std)):
            buffer.copy_(torch.tensor(values, dtype=torch.float64).view(3, 1, 1))

    def inputs(self, images: Tensor) -> Tensor:
        """Convert a training batch of the loader, whose view is `train_view`'s, to what `forward` takes.

        Args:
            images: float16 or float32 (B, 3, S, S), on any device.

        Returns:
            The images on this classifier's device in its dtype; float64 ones normalized.
        """
        x = images.to(self.mean.device).to(self.dtype)
        return (x - self.mean).div_(self.std * self.divisor) if self.dtype == torch.float64 else x

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, classes) of a batch from `inputs`, (B, 3, S, S)."""
        if self.mean_image is not None:
            divisor = self.divisor if self.training else 1.0
            x = x - self.mean_image / (self.std * divisor)
        logits: Tensor = self.model(x)
        return logits

    def classify(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, classes) of pixels 0..255, (B, 3, S, S)."""
        x = pixels.to(self.dtype) - self.mean
        logits: Tensor = self(x.div_(self.std))  # in place, to save a second copy
        return logits


def new_classifier(recipe: Recipe, dataset: Dataset) -> Classifier:
    """Build a recipe's classifier for a dataset, initialized from torch's default random generator.

    Args:
        recipe: Gives architecture, width, crop, mean and std.
        dataset: Gives classes, image size, pixel statistics and mean image.

    Raises:
        UsageError: The width or crop is impossible, or the recipe wants a mean image and the dataset has
            none.
    """
    check_crop(recipe.crop, dataset.image.size)
    statistics = dataset.statistics
    variance = [statistics.covariance[c][c] for c in range(3)]
    std = [max(v, 1e-6) ** 0.5 if recipe.std == "channel" else 1.0 for v in variance]
    mean_image = recipe.mean == "image"
    spec = Spec(
        arch=recipe.arch,
        width=recipe.width,
        crop=recipe.crop,
        classes=tuple(dataset.classes),
        size=dataset.image.size,
        mean=(0.0, 0.0, 0.0) if mean_image else statistics.mean,
        std=(std[0], std[1], std[2]),
        mean_image=mean_image,
        names=tuple(info.name for info in dataset.manifest.classes),
        mode=dataset.image.mode,
        quality=dataset.image.quality,
    )
    classifier = Classifier(spec)
    if classifier.mean_image is not None:
        margin = (dataset.image.size - recipe.crop) // 2
        center = dataset.mean_image()[margin:, margin:][: recipe.crop, : recipe.crop]
        classifier.mean_image.copy_(torch.from_numpy(center).permute(2, 0, 1))
    return classifier


def train_view(classifier: Classifier, recipe: Recipe, dataset: Dataset, epoch: int) -> TrainView:
    """Return the training view of an epoch, counted from 0, and set the classifier's divisor to match.

    A float64 classifier normalizes in `inputs`; loaders, which compute in float32, only add the noise.
    """
    noise = color_noise(recipe.stage_at(epoch).color_noise or "none", dataset.statistics)
    classifier.divisor = noise.divisor if noise else 1.0
    view = TrainView(
        crop=recipe.crop, noise=noise, augmentation=recipe.augmentation, crop_group=recipe.crop_group
    )
    if classifier.dtype == torch.float64:
        return replace(view, noise=replace(noise, divisor=1.0) if noise else None)
    return replace(view, mean=classifier.spec.mean, std=classifier.spec.std)
