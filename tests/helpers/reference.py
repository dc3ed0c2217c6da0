"""Reference implementation: a dataset's samples, crops and metrics by tarfile, Pillow and NumPy alone."""

import io
import tarfile
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipeline import Dataset
from trainer.models.classifier import Classifier


@dataclass(frozen=True)
class Sample:
    key: str
    label: int
    pixels: np.ndarray  # (H, W, 3)


def stored(dataset: Dataset, split: str = "val") -> list[Sample]:
    """Samples of a split in the order of its tars."""
    samples = []
    for tar in dataset.tars(split):
        with tarfile.open(tar) as archive:
            content = {member.name: archive.extractfile(member).read() for member in archive}
        for name, data in content.items():
            key, kind = name.split(".")
            if kind == "jpg":
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                samples.append(Sample(key, int(content[f"{key}.cls"]), pixels))
    return samples


def crops(pixels: np.ndarray, side: int, views: str) -> np.ndarray:
    """The center crop, or the ten crops with views "ten-crop": float32 (V, 3, side, side)."""
    free = pixels.shape[0] - side
    corners = [(free // 2, free // 2)]
    if views == "ten-crop":
        corners = [(0, 0), (0, free), (free, 0), (free, free), *corners]
    cut = [pixels[y : y + side, x : x + side] for y, x in corners]
    if views == "ten-crop":
        cut += [image[:, ::-1] for image in cut]
    return np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def probabilities_of(
    model: Classifier, samples: list[Sample], views: str, outputs: list[int] | None = None
) -> np.ndarray:
    """Probabilities over these outputs (None: all), averaged over views, preprocessed in NumPy float64."""
    spec = model.spec
    mean = np.array(spec.mean)[:, None, None]
    if model.mean_image is not None:
        mean = model.mean_image.double().numpy()
    rows = []
    for sample in samples:
        prepared = (crops(sample.pixels, spec.crop, views) - mean) / np.array(spec.std)[:, None, None]
        with torch.inference_mode():
            logits = model.eval().model(torch.from_numpy(prepared).float()).double().numpy()
        kept = logits if outputs is None else logits[:, outputs]
        rows.append(softmax(kept).mean(axis=0))
    return np.array(rows)


def measured(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Top-1 and top-5 accuracy and mean −log probability; ties are broken by a stable sort."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranks = (order == labels[:, None]).argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    return (ranks < 1).mean(), (ranks < 5).mean(), -np.log(own).mean()
