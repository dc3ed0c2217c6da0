"""Checkpoints of other programs: weights by name, without the preprocessing that ours carry.

Read are torch files and safetensors that hold a state dict, alone or as `state_dict` or `model` inside a
dict (as timm and torchvision's references write them), also from inside DataParallel or torch.compile.
"""

import argparse
import tomllib
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pipeline.errors import UsageError
from trainer.models.alexnet import ARCHITECTURES, WIDEST, build_model
from trainer.models.classifier import Classifier, Spec

_INSIDE = ("state_dict", "model", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 5

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a network of another program wants its images; units are gray levels 0..255.

    Attributes:
        mean: (R, G, B) subtracted.
        std: (R, G, B) divided by.
        size: shorter side of the images that crops are cut from, pixels.
        crop: side of the crops, pixels.
    """

    mean: Color
    std: Color
    size: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not all(0 < value < 1e6 for value in self.std):
            raise ValueError(f"std is {self.std}, but each must be above 0")
        if not 1 <= self.crop <= self.size:
            raise ValueError(f"crop is {self.crop}, not within 1..{self.size}, the size")


# mean and std on a 0..1 scale as torchvision documents them for its ImageNet weights.
PREPROCESSING = {
    "torchvision": Preprocessing(
        (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
    )
}
"""Preprocessing by name."""


@dataclass(frozen=True)
class ExternalWeights:
    """What a checkpoint of another program does not say: its architecture and its preprocessing."""

    arch: str
    preprocessing: Preprocessing


def describe(arch: str | None, preprocessing: str | None) -> ExternalWeights | None:
    """What a user says of checkpoints that do not describe themselves, None where nothing is said.

    Args:
        arch: one of `ARCHITECTURES`.
        preprocessing: a name in `PREPROCESSING`, or a .toml file with `mean` and `std` in gray levels and
            optionally `size` and `crop`.

    Raises:
        UsageError: one without the other, an unknown name, or a file that is none.
    """
    if arch is None and preprocessing is None:
        return None
    if arch is None or preprocessing is None:
        given, other = (
            ("--arch", "--preprocessing") if preprocessing is None else ("--preprocessing", "--arch")
        )
        raise UsageError(f"{given} needs {other} too: give both, or neither for checkpoints of this toolkit")
    if arch not in ARCHITECTURES:
        raise UsageError(f"--arch {arch}: unknown; known are {', '.join(ARCHITECTURES)}")
    return ExternalWeights(arch, _preprocessing(preprocessing))


def is_external(path: Path) -> bool:
    """Whether a file can be read but does not describe its network, as every checkpoint of ours does."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return "spec" not in (file.metadata() or {})
        content = _load_torch(path)
    except Exception:  # for the reader of our own checkpoints to name
        return False
    return not (isinstance(content, dict) and "format" in content and "spec" in content)


def load_external(
    path: Path, external: ExternalWeights | None, classes: tuple[str, ...]
) -> tuple[Classifier, list[str]]:
    """Load weights by name into a classifier of the given classes.

    Args:
        path: of the checkpoint.
        external: what it does not say.
        classes: class ids in label order; the network's outputs are taken as these, in this order.

    Returns:
        The classifier, and what a user should know: how the outputs were taken, and keys that were ignored.

    Raises:
        UsageError: nothing was said of it, no state dict inside, or weights that do not fit the
            architecture or the number of classes.
    """
    if external is None:
        raise UsageError(
            f"{path}: says neither its architecture nor its preprocessing; give both, such as "
            "--arch alexnet_owt --preprocessing torchvision"
        )
    state = _state_of(path)
    used = external.preprocessing
    spec = Spec(
        arch=external.arch,
        width=_width(state, external.arch),
        crop=used.crop,
        classes=classes,
        size=used.size,
        mean=used.mean,
        std=used.std,
        mean_image=False,
    )
    classifier = Classifier(spec)
    wanted = classifier.model.state_dict()
    _refuse_other_classes(path, state, wanted, classes)
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or misshapen:
        found = (("missing", missing), ("of another shape", misshapen), ("unexpected", unexpected))
        detail = "; ".join(f"{_counted(keys)} {what}: {_capped(keys)}" for what, keys in found if keys)
        raise UsageError(f"{path}: does not fit {external.arch}: {detail}; choose another --arch")
    classifier.model.load_state_dict(state, strict=False)
    notes = [
        f"{path}: its {len(classes):,} outputs are taken as the data's {len(classes):,} classes, in order"
    ]
    if unexpected:
        notes.append(f"{path}: {_counted(unexpected)} ignored, not in {external.arch}: {_capped(unexpected)}")
    return classifier, notes


def _preprocessing(name: str) -> Preprocessing:
    path = Path(name)
    if path.suffix != ".toml":
        if name not in PREPROCESSING:
            raise UsageError(
                f"--preprocessing {name}: unknown; known are {', '.join(PREPROCESSING)}, or give a .toml file"
            )
        return PREPROCESSING[name]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := values.keys() - {field.name for field in fields(Preprocessing)}:
            raise ValueError(f"unknown key {min(unknown)!r}")
        return msgspec.convert(values, Preprocessing)
    except OSError as error:
        raise UsageError(f"--preprocessing {path}: cannot be read ({error.strerror})") from error
    except (ValueError, msgspec.ValidationError) as error:  # no UTF-8, no TOML, or not these values
        raise UsageError(
            f"--preprocessing {path}: {error}; it needs mean and std, three gray levels each, and may have "
            "size and crop"
        ) from error


def _load_torch(path: Path) -> Any:
    # timm's checkpoints hold the command line's options, a class that only holds values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _state_of(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, its names without the wrappers that it was saved from."""
    content: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        content = _load_torch(path)
    found = [content, *(content[name] for name in _INSIDE if name in content)] if _is_table(content) else []
    state = next((table for table in reversed(found) if _is_state(table)), None)
    if state is None:
        inside = f" but {', '.join(list(map(str, content))[:_SHOWN])}" if _is_table(content) else ""
        raise UsageError(f"{path}: holds no state dict{inside}; save the model's state_dict()")
    return {_unwrapped(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_state(value: Any) -> bool:
    return _is_table(value) and any(
        isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()
    )


def _unwrapped(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def _width(state: dict[str, Tensor], arch: str) -> float:
    """The network's width by the kernels of its first layer; 1 where it has none."""
    with torch.device("meta"):
        published = build_model(arch, classes=2).state_dict()
    first = next(iter(published))
    kernels = state[first].shape[:1] if first in state else ()
    width = kernels[0] / len(published[first]) if kernels else 1.0
    return width if 0 < width <= WIDEST else 1.0


def _refuse_other_classes(
    path: Path, state: dict[str, Tensor], wanted: dict[str, Tensor], classes: tuple[str, ...]
) -> None:
    last = list(wanted)[-1]  # the bias of the layer that makes the logits
    if last in state and state[last].ndim == 1 and len(state[last]) != len(classes):
        raise UsageError(
            f"{path}: has {len(state[last]):,} outputs, but the data has {len(classes):,} classes, and a "
            "checkpoint of another program names none; evaluate on data with its classes"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _counted(keys: list[str]) -> str:
    return f"{len(keys)} key{'' if len(keys) == 1 else 's'}"


def _capped(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"
