"""Export a trained network for other programs: safetensors, ONNX, or torchvision's state dict.

Shapes: B batch, K classes, S side of the crop.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.arguments import suggestion
from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import write_bytes
from trainer.models.classifier import Classifier
from trainer.precision import computing
from trainer.runs import checkpoint

ONNX_OPSET = 18
TOLERANCE = 1e-4
"""Largest `onnx_difference` between ONNX Runtime and torch with which a file is written."""
# Protocol buffers hold at most 2 GiB; the graph without weights takes some 100 kB.
_LARGEST_ONNX = 2**31 - 2**20


def export(classifier: Classifier, path: Path) -> list[str]:
    """Export a classifier in the format of the file's suffix.

    Args:
        classifier: The network; it is moved to the CPU and put into evaluation mode.
        path: File to write: .safetensors, .onnx, or .pth for torchvision.

    Returns:
        Remarks on the file for the user, one line each.

    Raises:
        UsageError: the suffix is another, the format cannot hold the network, or a package is missing.
        RunError: the file cannot be written, or the outputs of the ONNX graph differ from the network's.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: unknown format; {suggestion(path.suffix, _WRITERS)} as its suffix")
    return _WRITERS[path.suffix](classifier.cpu().eval(), path)


def to_safetensors(classifier: Classifier, path: Path) -> list[str]:
    """Write weights and spec as safetensors; the file loads wherever a trained checkpoint does.

    Args:
        classifier: The network, on the CPU.
        path: File to write.

    Returns:
        Remarks on the file for the user, one line each.

    Raises:
        RunError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    metadata = {"format": str(checkpoint.FORMAT_VERSION), "spec": json.dumps(asdict(classifier.spec))}
    write_bytes(path, save(tensors, metadata))
    return ["loads wherever a checkpoint does; preprocessing and classes are in its metadata"]


def to_onnx(classifier: Classifier, path: Path) -> list[str]:
    """Write an ONNX graph for any batch size, and compare its outputs with the network's if possible.

    The input `pixels` is float32 (B, 3, S, S), RGB, 0..255; the graph subtracts the mean and divides by std.
    The outputs `logits` and `probabilities` are float32 (B, K). The metadata holds image size, crop, how to
    cut it, and the classes.

    Args:
        classifier: The network, on the CPU.
        path: File to write.

    Returns:
        Remarks on the file for the user, one line each.

    Raises:
        UsageError: the packages of the extra `export` are missing, or the network is larger than 2 GiB.
        RunError: the file cannot be written, or ONNX Runtime's outputs differ from torch's.
    """
    size = sum(tensor.nbytes for tensor in classifier.state_dict().values())
    if size > _LARGEST_ONNX:
        raise UsageError(
            f"{path}: an ONNX file holds 2 GiB at most, this network has {size / 2**30:.1f} GiB; export it "
            "as .safetensors"
        )
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UsageError(f"{path}: {error.name} is missing; pip install 'alexnet-toolkit[export]'") from error
    spec = classifier.spec
    model = _Graph(classifier).eval()
    example = torch.zeros(2, 3, spec.crop, spec.crop)
    with _silent_exporter():
        program: Any = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            opset_version=ONNX_OPSET,
            verbose=False,
        )
    proto = program.model_proto
    facts = {
        "input": f"float32 (batch, 3, {spec.crop}, {spec.crop}), RGB, pixels 0..255",
        "size": str(spec.size),
        "crop": str(spec.crop),
        "preparation": f"cut the center square, scale it to {spec.size} px, cut the center {spec.crop} px",
        "classes": json.dumps(spec.classes),
        "names": json.dumps(spec.names or spec.classes),
        "spec": json.dumps(asdict(spec)),
    }
    onnx.helper.set_model_props(proto, facts)
    data = proto.SerializeToString()
    notes = ["takes pixels 0..255: preprocessing is in the graph, size and crop are in the metadata"]
    try:
        difference = onnx_difference(data, classifier)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{path}: not written: ONNX Runtime's outputs differ from torch's by {difference:.1e}, "
                f"more than {TOLERANCE:g}; this is a bug of the exporter, please report it"
            )
        notes.append(f"ONNX Runtime agrees within {difference:.1e}")
    except ImportError:
        notes.append("not tested: onnxruntime is missing (pip install 'alexnet-toolkit[export]')")
    write_bytes(path, data)
    return notes


def onnx_difference(
    model: bytes | Path, classifier: Classifier, pixels: NDArray[np.float32] | None = None
) -> float:
    """Return the largest difference between the outputs of ONNX Runtime and torch.

    This is the larger of two maxima: the difference of a probability, and the difference of a logit divided
    by max(1, largest |logit|). Logits count too because with many classes each probability is so small that
    even a wrong one would hardly differ.

    Args:
        model: Path or bytes of the ONNX file.
        classifier: Network that the file was exported from, on the CPU.
        pixels: float32 (B, 3, S, S), RGB, 0..255; by default three images of fixed random noise.

    Returns:
        The difference, 0 or more; NaN if an output is NaN.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    crop = classifier.spec.crop
    if pixels is None:
        pixels = np.random.default_rng(0).uniform(0, 255, (3, 3, crop, crop)).astype(np.float32)
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"pixels": pixels})
    with torch.inference_mode(), computing("float32", torch.device("cpu")):
        expected = classifier.eval().classify(torch.from_numpy(pixels))
    scale = max(1.0, float(expected.abs().max()))
    differences = (
        np.abs(logits - expected.numpy()).max() / scale,
        np.abs(probabilities - expected.softmax(dim=1).numpy()).max(),
    )
    return float(np.max(differences))  # np.max, unlike max, returns NaN if one is NaN


def to_torchvision(classifier: Classifier, path: Path) -> list[str]:
    """Write a plain state dict with torchvision's keys, and the preprocessing as NAME.preprocessing.json.

    torchvision scales pixels to 0..1 before it normalizes them. Mean and std are therefore written on that
    scale, so that `Normalize` applies the preprocessing that the network was trained with.

    Args:
        classifier: The network, on the CPU.
        path: File to write.

    Returns:
        Remarks on the file for the user, one line each.

    Raises:
        UsageError: the network is not `alexnet_owt` at width 1, or subtracts a mean image.
        RunError: a file cannot be written.
    """
    spec = classifier.spec
    if spec.arch != "alexnet_owt" or spec.width != 1:
        raise UsageError(
            f"{path}: torchvision's alexnet is alexnet_owt at width 1, this network is {spec.arch} at width "
            f"{spec.width:g}; export it as .safetensors or .onnx"
        )
    if spec.mean_image:
        raise UsageError(
            f"{path}: the network subtracts a mean image, which torchvision's transforms cannot; export it "
            "as .safetensors or .onnx, or train with --set mean=channel"
        )
    state = {name: tensor.contiguous() for name, tensor in classifier.model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    facts = {
        "model": f"torchvision.models.alexnet(num_classes={len(spec.classes)})",
        "transforms": {
            "resize_shorter_side": spec.size,
            "center_crop": spec.crop,
            "normalize_mean": [value / 255 for value in spec.mean],
            "normalize_std": [value / 255 for value in spec.std],
        },
        "classes": list(spec.classes),
        "names": list(spec.names or spec.classes),
    }
    preprocessing = path.with_suffix(".preprocessing.json")  # NAME.json may be a file of results
    write_bytes(preprocessing, json.dumps(facts, indent=1).encode() + b"\n")
    write_bytes(path, buffer.getvalue())
    return [
        f"its preprocessing and classes are in {preprocessing}; do not use torchvision's default mean and std"
    ]


_WRITERS: dict[str, Callable[[Classifier, Path], list[str]]] = {
    ".safetensors": to_safetensors,
    ".onnx": to_onnx,
    ".pth": to_torchvision,
}


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Silence warnings and log messages of torch's exporter: on its internals, and on missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


class _Graph(nn.Module):
    """Exported module: pixels, float32 (B, 3, S, S), 0..255 → logits and probabilities, (B, K) each."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier.classify(pixels)
        return logits, logits.softmax(dim=1)
