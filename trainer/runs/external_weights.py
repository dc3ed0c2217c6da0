"""Load checkpoints of other programs: a state dict without architecture and preprocessing.

Reads torch files and safetensors with a state dict, either alone or in a dict under `state_dict`, `model` or
`model_state_dict` (as timm and torchvision's reference scripts write them), also of models wrapped in
DataParallel or torch.compile.
"""

import argparse
import tomllib
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pipeline.errors import UsageError
from trainer.models.alexnet import ARCHITECTURES, WIDEST, build_model
from trainer.models.classifier import Classifier, Spec

# Keys of the state dict inside a checkpoint, the first that is there counts; prefixes that wrappers add to
# its keys; number of names shown in a message.
_INSIDE = ("model_state_dict", "model", "state_dict")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 5

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing that a network of another program was trained with.

    Attributes:
        mean: (R, G, B) to subtract, in gray levels 0..255.
        std: (R, G, B) to divide by afterwards, in gray levels.
        size: Shorter side of the resized images, in pixels.
        crop: Side of the crops that are cut from them, in pixels.

    Raises:
        ValueError: A std is not positive, or the crop does not fit the size.
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


# torchvision documents mean and std of its ImageNet weights on a 0..1 scale.
PREPROCESSING = {
    "torchvision": Preprocessing(
        (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
    )
}
"""Name → preprocessing."""


@dataclass(frozen=True)
class ExternalWeights:
    """Description of checkpoints of another program, which do not contain it.

    Attributes:
        arch: One of `ARCHITECTURES`.
        preprocessing: Preprocessing of the network's images.
    """

    arch: str
    preprocessing: Preprocessing


def describe(arch: str | None, preprocessing: str | None) -> ExternalWeights | None:
    """Build the description of external weights from the options --arch and --preprocessing.

    Args:
        arch: One of `ARCHITECTURES`, or None.
        preprocessing: A name in `PREPROCESSING`, a .toml file with `mean` and `std` in gray levels and
            optionally `size` and `crop`, or None.

    Returns:
        The description; None where both arguments are None.

    Raises:
        UsageError: Only one is given, a name is unknown, or the file is not valid.
    """
    if arch is None and preprocessing is None:
        return None
    if arch is None or preprocessing is None:
        raise UsageError(
            "--arch and --preprocessing go together: give both, or neither for checkpoints of this toolkit"
        )
    if arch not in ARCHITECTURES:
        raise UsageError(f"--arch {arch}: unknown; known are {', '.join(ARCHITECTURES)}")
    return ExternalWeights(arch, _preprocessing(preprocessing))


def is_external(path: Path) -> bool:
    """Whether a file is readable but does not describe its network, as checkpoints of this toolkit do."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return "spec" not in (file.metadata() or {})
        content = _load_torch(path)
    except Exception:  # checkpoint.load will report it
        return False
    return not (isinstance(content, dict) and "format" in content and "spec" in content)


def load_external(
    path: Path, external: ExternalWeights | None, classes: tuple[str, ...]
) -> tuple[Classifier, list[str]]:
    """Load another program's weights by name into a classifier.

    Args:
        path: Checkpoint file.
        external: Its architecture and preprocessing.
        classes: Class ids in label order; the network's outputs are assumed to be in this order.

    Returns:
        The classifier, and notes for the user: how outputs match classes, and which keys were ignored.

    Raises:
        UsageError: `external` is None, the file holds no state dict, or its weights do not fit the
            architecture or the number of classes.
    """
    if external is None:
        raise UsageError(
            f"{path}: does not describe its architecture and preprocessing; give both, such as "
            "--arch alexnet_owt --preprocessing torchvision"
        )
    state = _state_of(path)
    width = _width(state, external.arch)
    preprocessing = asdict(external.preprocessing)
    classifier = Classifier(
        Spec(arch=external.arch, width=width, classes=classes, mean_image=False, **preprocessing)
    )
    wanted = classifier.model.state_dict()
    last = list(wanted)[-1]  # the bias of the last layer
    if last in state and state[last].ndim == 1 and len(state[last]) != len(classes):
        raise UsageError(
            f"{path}: has {len(state[last]):,} outputs, but the data has {len(classes):,} classes; "
            "evaluate on data with the classes that it was trained on"
        )
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or misshapen:
        found = {"missing": missing, "of another shape": misshapen, "unexpected": unexpected}
        detail = "; ".join(_listed(keys, what) for what, keys in found.items() if keys)
        raise UsageError(f"{path}: does not fit {external.arch}: {detail}; choose another --arch")
    classifier.model.load_state_dict(state, strict=False)
    count = f"{len(classes):,}"
    notes = [f"{path}: its {count} outputs are assumed to be the data's {count} classes, in order"]
    if unexpected:
        notes.append(f"{path}: {_listed(unexpected, f'ignored, not in {external.arch}')}")
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
    except (ValueError, msgspec.ValidationError) as error:  # not UTF-8, not TOML, or other values
        raise UsageError(
            f"--preprocessing {path}: {error}; it needs mean and std, three gray levels each, and may have "
            "size and crop"
        ) from error


def _load_torch(path: Path) -> Any:
    # timm stores the command line's options as a Namespace, a class that only holds values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _state_of(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file, without the prefixes that wrappers add to its keys."""
    content: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        content = _load_torch(path)
    outer: dict[Any, Any] = content if isinstance(content, dict) else {}
    for state in (*(outer.get(name) for name in _INSIDE), outer):
        found = state.items() if isinstance(state, dict) else ()
        tensors = {key: value for key, value in found if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            return {_unwrapped(key): value for key, value in tensors.items()}
    inside = f" (its keys: {', '.join(list(map(str, content))[:_SHOWN])})" if outer else ""
    raise UsageError(f"{path}: holds no state dict{inside}; save the model's state_dict()")


def _unwrapped(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def _width(state: dict[str, Tensor], arch: str) -> float:
    """Infer the network's width from the kernels of its first layer; 1 where this is not possible."""
    with torch.device("meta"):
        published = build_model(arch, classes=2).state_dict()
    first = next(iter(published))
    kernels = state[first].shape[:1] if first in state else ()
    width = kernels[0] / len(published[first]) if kernels else 1.0
    return width if 0 < width <= WIDEST else 1.0


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(keys: list[str], what: str) -> str:
    return f"{len(keys)} key{'' if len(keys) == 1 else 's'} {what}: {capped(keys)}"


def capped(names: list[str]) -> str:
    """List the first five names, and say how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
