"""A trained network for other programs: safetensors, ONNX, and torchvision's layout.

Shapes: B batch, K classes, S crop.
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

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import write_bytes
from trainer.models.classifier import Classifier
from trainer.runs import checkpoint

ONNX_OPSET = 18
TOLERANCE = 1e-4
"""Largest `onnx_difference` that ONNX Runtime may have from torch."""
# Protocol buffers end at 2 GiB; the graph itself takes some 100 kB.
_LARGEST_ONNX = 2**31 - 2**20


def export(classifier: Classifier, path: Path) -> list[str]:
    """Write a classifier in the format that the suffix names: .safetensors, .onnx, or .pth for torchvision.

    Returns:
        What a user should know of the file.

    Raises:
        UsageError: another suffix, a network that the format cannot hold, or a package that is missing.
        RunError: it cannot be written, or the ONNX graph does not answer as the network does.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: no known format; name a file that ends in {', '.join(_WRITERS)}")
    return _WRITERS[path.suffix](classifier.cpu().eval(), path)


def to_safetensors(classifier: Classifier, path: Path) -> list[str]:
    """Write weights and description; the file loads wherever a checkpoint does.

    Raises:
        RunError: it cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    metadata = {"format": str(checkpoint.FORMAT_VERSION), "spec": json.dumps(asdict(classifier.spec))}
    write_bytes(path, save(tensors, metadata))
    return ["loads wherever a checkpoint does; preprocessing and classes are in its metadata"]


def to_onnx(classifier: Classifier, path: Path) -> list[str]:
    """Write a graph from pixels to logits and probabilities, for any batch size, and try it.

    The input `pixels` is float32 (B, 3, S, S), RGB, 0..255: subtracting and dividing happen in the graph.
    The metadata holds crop, size, how to cut, and the classes.

    Raises:
        UsageError: the packages of the extra `export` are missing, or the network is larger than 2 GiB.
        RunError: it cannot be written, or ONNX Runtime answers otherwise than torch.
    """
    size = sum(tensor.nbytes for tensor in classifier.state_dict().values())
    if size > _LARGEST_ONNX:
        raise UsageError(
            f"{path}: an ONNX file holds 2 GiB at most, this network has {size / 2**30:.1f}; export it as "
            ".safetensors"
        )
    try:
        import onnx
        import onnxscript  # noqa: F401 - what torch's exporter needs
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
    notes = ["pixels 0..255 go in; preprocessing is inside, what to cut is in the metadata"]
    try:
        difference = onnx_difference(data, classifier)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{path}: not written: ONNX Runtime's answers differ from torch's by {difference:.1e}, "
                f"more than {TOLERANCE:g}; this is a fault of the exporter, please report it"
            )
        notes.append(f"ONNX Runtime agrees within {difference:.1e}")
    except ImportError:
        notes.append("not tried: onnxruntime is missing (pip install 'alexnet-toolkit[export]')")
    write_bytes(path, data)
    return notes


def onnx_difference(
    model: bytes | Path, classifier: Classifier, pixels: NDArray[np.float32] | None = None
) -> float:
    """Largest difference between ONNX Runtime and torch: of a probability, or of a logit where that is more.

    Of many classes each is so unlikely that a wrong probability would hardly differ, so logits count too,
    relative to the largest of them where that is above 1.

    Args:
        model: the ONNX file or its bytes.
        classifier: that it was made of.
        pixels: float32 (B, 3, S, S), 0..255; some noise where left out.

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
    with torch.inference_mode():
        expected = classifier.eval().classify(torch.from_numpy(pixels))
    scale = max(1.0, float(expected.abs().max()))
    differences = (
        np.abs(logits - expected.numpy()).max() / scale,
        np.abs(probabilities - expected.softmax(dim=1).numpy()).max(),
    )
    return float(np.max(differences))  # NaN where one is


def to_torchvision(classifier: Classifier, path: Path) -> list[str]:
    """Write a plain state dict with torchvision's keys, and the preprocessing as NAME.preprocessing.json.

    torchvision scales pixels to 0..1 before it normalizes; mean and deviation are given on that scale, so
    that its `Normalize` does what the network was trained with.

    Raises:
        UsageError: another architecture than `alexnet_owt` at width 1, or one with a mean image.
        RunError: it cannot be written.
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
    beside = path.with_suffix(".preprocessing.json")  # NAME.json may be someone's results
    write_bytes(beside, json.dumps(facts, indent=1).encode() + b"\n")
    write_bytes(path, buffer.getvalue())
    return [f"its preprocessing and classes are in {beside}: torchvision's default mean and std do not fit"]


_WRITERS: dict[str, Callable[[Classifier, Path], list[str]]] = {
    ".safetensors": to_safetensors,
    ".onnx": to_onnx,
    ".pth": to_torchvision,
}


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Withhold what torch's exporter says of its own insides, and of torchvision, which is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Graph(nn.Module):
    """Pixels → logits and probabilities."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier.classify(pixels)
        return logits, logits.softmax(dim=1)
