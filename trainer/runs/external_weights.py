"""Load checkpoints of other programs: a state dict without architecture and preprocessing."""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pipeline.arguments import COUNT, LEAST, check_number, check_record, check_word, suggestion
from pipeline.errors import UsageError
from trainer.models.alexnet import ARCHITECTURES, WIDEST, build_model
from trainer.models.classifier import Classifier, Spec
from trainer.runs.class_match import ClassesBy, classes_of_outputs
from trainer.runs.state_dict import WeightsChoice, capped, find_state

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
        UsageError: A std is not above 0, or the crop does not fit the size.
    """

    mean: Color
    std: Color
    size: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        for color in range(3):
            check_number(f"mean[{color}]", self.mean[color], -1e6, 1e6)
            check_number(f"std[{color}]", self.std[color], LEAST, 1e6)
        check_record(self, size=COUNT, crop=(1, self.size))


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

    Raises:
        UsageError: There is no such architecture.
    """

    arch: str
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        check_word("arch", self.arch, ARCHITECTURES)


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
    return ExternalWeights(arch, _preprocessing(preprocessing))


def is_external(content: Any) -> bool:
    """Whether a file's content does not describe its network, as checkpoints of this toolkit do."""
    return not (isinstance(content, dict) and "format" in content and "spec" in content)


def load_external(
    content: Any,
    path: Path,
    external: ExternalWeights | None,
    classes: Sequence[str],
    weights: WeightsChoice | None = None,
    classes_by: ClassesBy = "name",
) -> tuple[Classifier, list[str]]:
    """Load another program's weights by name into a classifier.

    Args:
        content: Content of the checkpoint file; see `checkpoint_file.read_file`.
        path: The file, for messages.
        external: Its architecture and preprocessing.
        classes: Class ids of the dataset, in label order.
        weights: Which weights to take where the file holds averaged ones too; None for those.
        classes_by: How the outputs' classes are found; see `classes_of_outputs`.

    Returns:
        The classifier, and notes for the user: how outputs match classes, which weights were taken, and which
        keys were changed or ignored.

    Raises:
        UsageError: `external` is None, the file holds no state dict or several, or its weights do not fit the
            architecture or the classes.
    """
    if external is None:
        raise UsageError(
            f"{path}: does not describe its architecture and preprocessing; give both, such as "
            "--arch alexnet_owt --preprocessing torchvision"
        )
    with torch.device("meta"):
        published = build_model(external.arch, classes=2).state_dict()
    found = find_state(content, published, weights, path)
    state = found.state
    preprocessing = asdict(external.preprocessing)
    width = _width(state, published)
    bias = state.get(list(published)[-1])  # of the last layer
    outputs = len(classes) if bias is None or bias.ndim != 1 else len(bias)
    named, assumed = classes_of_outputs(path, outputs, classes, classes_by)
    classifier = Classifier(
        Spec(arch=external.arch, width=width, classes=named, mean_image=False, **preprocessing)
    )
    wanted = classifier.model.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or misshapen:
        problems = {"missing": missing, "of another shape": misshapen, "unexpected": list(found.unused)}
        detail = "; ".join(_listed(keys, what) for what, keys in problems.items() if keys)
        raise UsageError(f"{path}: does not fit {external.arch}: {detail}; choose another --arch")
    classifier.model.load_state_dict(state)
    notes = [f"{path}: {assumed}"]
    notes += found.notes
    if found.unused:
        notes.append(f"{path}: {_listed(list(found.unused), f'ignored, not in {external.arch}')}")
    return classifier, notes


def _preprocessing(name: str) -> Preprocessing:
    path = Path(name)
    if path.suffix != ".toml":
        if name not in PREPROCESSING:
            known = suggestion(name, PREPROCESSING)
            raise UsageError(f"--preprocessing {name}: unknown; {known}, or give a .toml file")
        return PREPROCESSING[name]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := values.keys() - {field.name for field in fields(Preprocessing)}:
            raise UsageError(f"unknown key {min(unknown)!r}")
        return msgspec.convert(values, Preprocessing)
    except OSError as error:
        raise UsageError(f"--preprocessing {path}: cannot be read ({error.strerror})") from error
    except (ValueError, UsageError) as error:  # not UTF-8, not TOML, or other values
        raise UsageError(
            f"--preprocessing {path}: {error}; it needs mean and std, three gray levels each, and may have "
            "size and crop"
        ) from error


def _width(state: dict[str, Tensor], published: dict[str, Tensor]) -> float:
    """Infer the network's width from the kernels of its first layer; 1 where this is not possible."""
    first = next(iter(published))
    kernels = state[first].shape[:1] if first in state else ()
    width = kernels[0] / len(published[first]) if kernels else 1.0
    return width if 0 < width <= WIDEST else 1.0


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(keys: list[str], what: str) -> str:
    return f"{len(keys)} key{'' if len(keys) == 1 else 's'} {what}: {capped(keys)}"
