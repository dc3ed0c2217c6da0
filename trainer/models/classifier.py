"""A network together with the preprocessing it was trained with, so that neither travels alone.

Shapes: B batch, S crop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import Dataset
from pipeline.loader.views import TrainView, check_crop, color_noise
from trainer.models.alexnet import build_model
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Spec:
    """What a checkpoint must say to rebuild its classifier; units are gray levels 0..255.

    Attributes:
        arch, width, crop: see `trainer.models.alexnet.build_model`.
        classes: class ids in label order.
        size: shorter side of the images that crops are cut from.
        mean: (R, G, B) subtracted, or zeros where a mean image is subtracted instead.
        std: (R, G, B) divided by.
        mean_image: whether a mean image is subtracted.
        names: readable class names in label order, or empty where they are not known.
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

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.classes):
            raise ValueError(f"{len(self.names)} names of {len(self.classes)} classes")


class Classifier(nn.Module):
    """Pixels → logits: `model` behind its preprocessing.

    `forward` takes batches as the training graph makes them: per-channel mean subtracted, divided by
    std, color noise added. What is left is the mean image, if the recipe has one, which is subtracted
    first, on the device and inside the compiled graph. `classify` takes pixels 0..255.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.model = build_model(spec.arch, len(spec.classes), spec.width, spec.crop)
        self.divisor = 1.0  # what the training graph divided by, besides std; 1 outside training
        image = torch.zeros(3, spec.crop, spec.crop) if spec.mean_image else None
        self.register_buffer("mean_image", image)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.mean_image: Tensor | None
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) from the training graph → logits (B, classes)."""
        if self.mean_image is not None:
            divisor = self.divisor if self.training else 1.0
            x = x - self.mean_image / (self.std * divisor)
        logits: Tensor = self.model(x)
        return logits

    def classify(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels 0..255 → logits (B, classes)."""
        logits: Tensor = self((pixels - self.mean).div_(self.std))  # a second copy would cost as much again
        return logits


def new_classifier(recipe: Recipe, dataset: Dataset) -> Classifier:
    """Build the recipe's classifier for a dataset, freshly initialized from torch's generator.

    Raises:
        UsageError: an impossible width or crop, or a mean image where the dataset has none.
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
    )
    classifier = Classifier(spec)
    if classifier.mean_image is not None:
        margin = (dataset.image.size - recipe.crop) // 2
        center = dataset.mean_image()[margin:, margin:][: recipe.crop, : recipe.crop]
        classifier.mean_image.copy_(torch.from_numpy(center).permute(2, 0, 1))
    return classifier


def train_view(classifier: Classifier, recipe: Recipe, dataset: Dataset, epoch: int) -> TrainView:
    """What the graph makes of each training image at an epoch; sets the classifier's divisor."""
    noise = color_noise(recipe.stage_at(epoch).color_noise or "none", dataset.statistics)
    classifier.divisor = noise.divisor if noise else 1.0
    return TrainView(recipe.crop, classifier.spec.mean, classifier.spec.std, noise, recipe.augmentation)
