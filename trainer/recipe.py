"""Recipes: all settings, besides the dataset, that decide the result of a run.

A recipe is a TOML file, such as those in `trainer/recipes/`. A run's folder keeps the recipe with all
overrides applied.
"""

import difflib
import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec
import tomli_w

from pipeline.arguments import check_number, check_record, suggestion, words_of
from pipeline.errors import UsageError
from pipeline.loader.views import Augmentation, NoiseKind

RECIPES = resources.files("trainer") / "recipes"

_FACTORS = (0, 1e6)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings that change at an epoch. Each holds until a later stage sets it again; None changes nothing.

    Attributes:
        epoch: First epoch of the stage, counted from 0.
        lr_factor: Factor on the recipe's learning rate, 0..1e6. Factors of stages do not multiply.
        bias_lr_factor: Replaces the recipe's `bias_lr_factor`.
        layer_lr_factors: Layer name → factor on the layer's learning rate, 0..1e6; 0 freezes the layer.
        color_noise: Replaces the recipe's `color_noise`.

    Raises:
        UsageError: `color_noise` is another word, or a number is out of range.
    """

    epoch: int
    lr_factor: float | None = None
    bias_lr_factor: float | None = None
    layer_lr_factors: dict[str, float] | None = None
    color_noise: NoiseKind | None = None

    def __post_init__(self) -> None:
        check_record(self, lr_factor=_FACTORS, bias_lr_factor=_FACTORS)
        for layer, factor in (self.layer_lr_factors or {}).items():
            check_number(f"layer_lr_factors.{layer}", factor, *_FACTORS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run; docs/recipes.md explains each.

    Attributes:
        name: Name of the recipe, for tables.
        arch: Architecture: "alexnet", "alexnet_source", "alexnet_owt" or "alexnet_bn".
        epochs: Passes over the training split.
        lr: Learning rate of the weights at the start, or at the end of the warm-up.
        width: Factor on hidden channels and units, 0.01..8.
        crop: Side of the crops in pixels, at least 64.
        mean: What is subtracted: the mean of each "channel", or the center crop of the mean "image".
        std: What pixels are divided by: nothing ("none", as in the paper) or the standard deviation of each
            "channel".
        color_noise: PCA color noise: "none", that of the "paper", or that of the "source" released with it.
        augmentation: "paper" (random crop) or "random-resized-crop"; both flip horizontally.
        crop_group: Number of images, one after the other in a global batch, that are cropped and flipped
            alike, at least 1.
        batch_size: Global batch size, over all processes.
        seed: Seed of initialization, order, augmentation and dropout.
        optimizer: "paper" (learning rate inside the velocity), "sgd" (torch's, learning rate outside) or
            "lars" (layer-wise learning rates for large batches).
        trust_coefficient: Trust coefficient η of LARS.
        scaling: How `--set batch_size` changes the learning rate: not at all ("none"), in proportion
            ("linear"), or with the square root ("sqrt").
        momentum: Factor on the velocity, 0..1.
        weight_decay: L2 coefficient, 0..1.
        decay_biases: Apply weight decay to biases and normalization parameters too.
        bias_lr_factor: Factor on the learning rate of biases and normalization parameters.
        schedule: "constant", "plateau" (divided by 10 when the validation error stops improving), "cosine"
            or "polynomial" ((1 − t)^power, with t from 0 after the warm-up to 1 at the end).
        power: Exponent of the polynomial schedule.
        warmup_epochs: Length in epochs of the initial linear warm-up from 0 to `lr`.
        plateau_patience: Epochs without improvement before the plateau schedule drops the learning rate.
        plateau_drops: Largest number of drops.
        label_smoothing: Fraction of the target that is spread over all classes, 0..1.
        precision: Dtype of the forward and backward pass. GPUs without bfloat16 use float16 with loss
            scaling instead, CPUs without it float32. "float64", on CPUs alone, is also that of the weights,
            their average, the optimizer, normalization and validation.
        tf32: Let GPUs round the factors of float32 products to TensorFloat-32, with 10 bits of mantissa.
        accumulation_steps: Number of micro-batches into which a process divides its batch, to save memory.
            Batch normalization then uses the statistics of each micro-batch.
        ema_decay: Decay of the averaged weights, which are evaluated and kept at the end; 0 for no average.
        grad_compression: Compression of gradients between processes: "none", "bf16" (NCCL only) or
            "powersgd".
        compile: Use torch.compile if a compiler is found.
        channels_last: Store images and weights in torch's channels-last memory format.
        stages: Changes at given epochs, in rising order of epochs.

    Raises:
        UsageError: A word is none of a setting's, a number is out of range, or the stages' epochs do not rise
            from 0 or later.
    """

    name: str
    arch: Literal["alexnet", "alexnet_source", "alexnet_owt", "alexnet_bn"]
    epochs: int
    lr: float
    width: float = 1.0
    crop: int = 224
    mean: Literal["channel", "image"] = "channel"
    std: Literal["none", "channel"] = "none"
    color_noise: NoiseKind = "paper"
    augmentation: Augmentation = "paper"
    crop_group: int = 1
    batch_size: int = 128
    seed: int = 2012
    optimizer: Literal["paper", "sgd", "lars"] = "paper"
    trust_coefficient: float = 0.001
    scaling: Literal["none", "linear", "sqrt"] = "none"
    momentum: float = 0.9
    weight_decay: float = 0.0005
    decay_biases: bool = True
    bias_lr_factor: float = 1.0
    schedule: Literal["constant", "plateau", "cosine", "polynomial"] = "constant"
    power: float = 2.0
    warmup_epochs: float = 0.0
    plateau_patience: int = 5
    plateau_drops: int = 3
    label_smoothing: float = 0.0
    precision: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    tf32: bool = False
    accumulation_steps: int = 1
    ema_decay: float = 0.0
    grad_compression: Literal["none", "bf16", "powersgd"] = "none"
    compile: bool = True
    channels_last: bool = False
    stages: tuple[Stage, ...] = field(default=())

    def __post_init__(self) -> None:
        check_record(
            self,
            epochs=(1, 100_000),
            lr=(1e-12, 1e6),
            width=(0.01, 8),
            crop=(64, 4096),
            crop_group=(1, 1 << 20),
            batch_size=(1, 1 << 20),
            trust_coefficient=(1e-12, 1e6),
            power=(0, 100),
            momentum=(0, 1),
            weight_decay=(0, 1),
            bias_lr_factor=_FACTORS,
            warmup_epochs=(0, 100_000),
            plateau_patience=(1, 100_000),
            plateau_drops=(0, 100),
            label_smoothing=(0, 1),
            accumulation_steps=(1, 1 << 20),
            ema_decay=(0, 0.999999),
        )
        epochs = [stage.epoch for stage in self.stages]
        if epochs != sorted(set(epochs)) or any(epoch < 0 for epoch in epochs):
            raise UsageError(f"stages must have rising epochs from 0 on, not {epochs}")

    def stage_at(self, epoch: int) -> Stage:
        """Return the settings at an epoch, counted from 0, with every attribute set."""
        now: dict[str, Any] = {
            "lr_factor": 1.0,
            "bias_lr_factor": self.bias_lr_factor,
            "layer_lr_factors": {},
            "color_noise": self.color_noise,
        }
        for stage in self.stages:
            if stage.epoch <= epoch:
                now |= _set_in(stage)
        return Stage(**(now | {"epoch": epoch}))

    def to_toml(self) -> str:
        """Convert to TOML, from which `load_recipe` reads an equal recipe."""
        return tomli_w.dumps(asdict(self) | {"stages": [_set_in(stage) for stage in self.stages]})


def _set_in(stage: Stage) -> dict[str, Any]:
    return {name: value for name, value in asdict(stage).items() if value is not None}


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    If an override changes the batch size, the learning rate follows by the recipe's scaling rule, unless
    `lr` is overridden too.

    Args:
        name_or_path: Name of a shipped recipe (`paper`) or path of a TOML file (`my.toml`).
        overrides: Settings as `key=value`, with values as in TOML; strings need no quotes.

    Raises:
        UsageError: There is no such recipe, the file is not TOML, a key is unknown, or a value has the
            wrong type or is out of range.
    """
    path = _find(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: not valid TOML: {error}") from error
    values.setdefault("name", path.name.removesuffix(".toml"))
    recipe = recipe_of(values, f"recipe {path}")
    changes = dict(_parse_override(override) for override in overrides)
    if not changes:
        return recipe
    changed = recipe_of(values | changes, "--set")
    return changed if "lr" in changes else replace(changed, lr=scaled_lr(changed, recipe.batch_size))


def scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """Scale a recipe's learning rate from `batch_size` to the recipe's own batch size, by its scaling rule.

    "linear" is the rule of Goyal et al. 2017. "sqrt" is that of Krizhevsky 2014 ("One weird trick", section
    5), which keeps the variance of the gradient.

    Args:
        recipe: Recipe with the new batch size and the old learning rate.
        batch_size: Global batch size for which the learning rate was chosen.
    """
    factor = recipe.batch_size / batch_size
    return recipe.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[recipe.scaling]


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """Check a table of settings and convert it to a recipe.

    Args:
        values: Setting → value, as read from TOML.
        where: Source of the settings, for the error message.

    Raises:
        UsageError: A key is unknown (the message names the nearest known one), missing, or its value has
            the wrong type or is out of range.
    """
    _refuse_unknown(values, [f.name for f in fields(Recipe)], where)
    stages = values.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict):
            _refuse_unknown(stage, [f.name for f in fields(Stage)], f"{where}, stages")
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_in_toml_terms(str(error))}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _find(name_or_path: str) -> Traversable:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"recipe {path}: no such file")
        return path
    known = sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir())
    if name_or_path not in known:
        raise UsageError(
            f"recipe {name_or_path!r}: unknown; {suggestion(name_or_path, known)}, or give a .toml file"
        )
    return RECIPES / f"{name_or_path}.toml"


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"--set {text!r}: expected key=value, such as batch_size=64")
    value = value.strip()
    for candidate in (value, value.lower(), f"0{value}"):  # also accept True for true, and .01 for 0.01
        try:
            return key, tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return key, value  # a bare word is a string


def _refuse_unknown(values: dict[str, Any], known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


def _in_toml_terms(message: str) -> str:
    """Convert msgspec's `Expected `int`, got `str` - at `$.epochs`` to `epochs: expected int, got str`."""
    text, _, at = message.replace("`", "").partition(" - at $")
    if text.startswith("Invalid enum value"):
        kind = Stage if at.startswith(".stages") else Recipe
        words = words_of(get_type_hints(kind)[at.rpartition(".")[2]])
        text += f"; {suggestion(text.partition(' value ')[2], words)}"
    return f"{at.lstrip('.')}: {text[0].lower()}{text[1:]}" if at else text
