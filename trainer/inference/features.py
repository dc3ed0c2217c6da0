"""What a network's layers give: maps of single images, and features of whole splits.

Shapes: B batch, S crop, D numbers of a feature vector.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.loader.views import EvalView
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Copy the outputs of named layers of every forward pass within the block into the dict yielded.

    Raises:
        UsageError: no layer has that name; those that there are are listed.
    """
    layers = _leaves(model)
    for name in names:
        if name not in layers:
            raise UsageError(f"no layer is named {name!r}; there are {', '.join(layers)}")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output.detach().clone()  # the ReLU behind it works in place

        return hook

    handles = [layers[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def map_layers(classifier: Classifier) -> list[str]:
    """Names of the layers whose outputs are maps, in the order of the forward pass."""
    names = list(_leaves(classifier.model))
    spec = classifier.spec
    with captured(classifier.model, names) as outputs, torch.inference_mode():
        classifier.classify(torch.zeros(1, 3, spec.crop, spec.crop))
    return [name for name, output in outputs.items() if output.ndim == 4]


def feature_layer(model: nn.Module) -> str:
    """The last hidden layer behind its ReLU, which the paper's figure 4 compares: `relu7` for fc7."""
    return [name for name, module in _leaves(model).items() if isinstance(module, nn.ReLU)][-1]


def features(classifier: Classifier, pixels: Tensor) -> NDArray[np.float32]:
    """Pixels (B, 3, S, S), 0..255 → the last hidden layer's activations, float32 (B, D)."""
    name = feature_layer(classifier.model)
    with captured(classifier.model, [name]) as outputs, torch.inference_mode():
        classifier.classify(pixels)
    found: NDArray[np.float32] = outputs[name].float().cpu().numpy()
    return found


def this_machine() -> DistEnv:
    """One process on this machine's first GPU, or on the CPU where there is none."""
    return DistEnv(kind="gpu" if torch.cuda.is_available() else "cpu")


def split_features(
    classifier: Classifier,
    dataset: Dataset,
    split: str,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of a whole split, float32 (n, D) a batch, in the order of `read_stored`'s places.

    Center crops through the loader, on the GPU where there is one; the classifier is moved there.

    Args:
        classifier: in evaluation mode.
        dataset: an opened dataset.
        split: "train", "val" or "test".
        batch_size: images per step.
        progress: called with the images done and all of them.

    Raises:
        UsageError: no such split.
        RunError: the loader could not read or decode a sample.
    """
    from pipeline.loader.loader import Loader  # DALI, which the figures of single images do without
    from trainer.data import LoaderOptions

    env = this_machine()
    classifier.to(env.device)
    view = EvalView("center", classifier.spec.crop)
    done = 0
    with Loader(dataset, split, view, batch_size, placement=LoaderOptions().placement(env)) as loader:
        for batch in loader:
            yield features(classifier, batch.images.to(env.device, torch.float32))
            done += len(batch.labels)
            progress(done, loader.samples)


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if not list(module.children())}
