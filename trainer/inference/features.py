"""Outputs of a network's layers, and feature vectors of images and of whole splits.

Shapes: B batch, S side of the crop, D length of a feature vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.loader.views import EvalView
from pipeline.progress import OnProgress, no_progress
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName, computing


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture the outputs of named layers: forward passes within the block fill the yielded dict.

    Args:
        model: The network; only leaf modules can be captured.
        names: Names of leaf modules, such as "conv1".

    Yields:
        Name of a layer → copy of its output in the latest forward pass.

    Raises:
        UsageError: no layer has one of the names; the message lists the layers.
    """
    layers = _leaves(model)
    for name in names:
        if name not in layers:
            raise UsageError(f"no layer is named {name!r}; there are {', '.join(layers)}")
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[name] = output.detach().clone()  # the ReLU that follows works in place

    handles = [layers[name].register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def map_layers(classifier: Classifier) -> list[str]:
    """List the layers whose outputs are feature maps (1, C, h, w), in the order of the forward pass."""
    names = list(_leaves(classifier.model))
    spec = classifier.spec
    with captured(classifier.model, names) as outputs, torch.inference_mode():
        classifier.classify(torch.zeros(1, 3, spec.crop, spec.crop))
    return [name for name, output in outputs.items() if output.ndim == 4]


def feature_layer(model: nn.Module) -> str:
    """Return the name of the last ReLU, `relu7` for fc7; the paper's figure 4 compares its outputs."""
    return [name for name, module in _leaves(model).items() if isinstance(module, nn.ReLU)][-1]


def features(
    classifier: Classifier, pixels: Tensor, precision: PrecisionName = "float32"
) -> NDArray[np.float32]:
    """Compute feature vectors, the activations of the last hidden layer after its ReLU.

    Args:
        classifier: Network in evaluation mode.
        pixels: float32 (B, 3, S, S), RGB, 0..255, on the network's device.
        precision: Precision of the forward pass.

    Returns:
        float32 (B, D).

    Raises:
        UsageError: the device lacks the precision.
        RunError: the GPU is out of memory.
    """
    name = feature_layer(classifier.model)
    with (
        captured(classifier.model, [name]) as outputs,
        torch.inference_mode(),
        computing(precision, pixels.device),
    ):
        classifier.classify(pixels)
    found: NDArray[np.float32] = outputs[name].float().cpu().numpy()
    return found


def this_machine() -> DistEnv:
    """Return the environment of a single process, on the first GPU, or on the CPU if there is none."""
    return DistEnv(kind="gpu" if torch.cuda.is_available() else "cpu")


def split_features(
    classifier: Classifier,
    dataset: Dataset,
    split: str,
    batch_size: int = 64,
    precision: PrecisionName = "float32",
    on_progress: OnProgress = no_progress,
) -> Iterator[NDArray[np.float32]]:
    """Compute the feature vectors of the center crops of a whole split, batch by batch.

    The loader and the network run on the first GPU, or on the CPU if there is none; the classifier is moved
    there.

    Args:
        classifier: Network in evaluation mode.
        dataset: The dataset, opened.
        split: "train", "val" or "test".
        batch_size: Number of images per batch.
        precision: Precision of the forward pass.
        on_progress: Called after each batch with (images done, images in all).

    Yields:
        float32 (B, D); row i of all batches together belongs to position i of the split.

    Raises:
        UsageError: there is no such split.
        RunError: the loader cannot read or decode a sample.
    """
    from trainer.data import LoaderOptions, open_loader_of

    env = this_machine()
    classifier.to(env.device)
    view = EvalView("center", classifier.spec.crop)
    done = 0
    with open_loader_of(env, LoaderOptions(), dataset, split, view, batch_size) as loader:
        for batch in loader:
            yield features(classifier, batch.images.to(env.device, torch.float32), precision)
            done += len(batch.labels)
            on_progress(done, loader.samples)


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules without children by name, in the order of definition."""
    return {name: module for name, module in model.named_modules() if not list(module.children())}
