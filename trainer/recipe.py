"""A recipe is data: everything that a run's result depends on, besides the dataset.

Recipes are TOML files in `trainer/recipes/`; a run's folder keeps the resolved one.
"""

import difflib
import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec
import tomli_w

from pipeline.errors import UsageError
from pipeline.loader.views import Augmentation, NoiseKind

RECIPES = resources.files("trainer") / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What changes from an epoch on, until the next stage that names the same thing.

    Attributes:
        epoch: first epoch (0 is the first of the run) that it holds for.
        rate_factor: multiplies the recipe's rate; not cumulative.
        bias_rate: replaces the recipe's.
        layer_rates: layer → factor on its rate; 0 freezes it.
        color_noise: replaces the recipe's.
    """

    epoch: int
    lr_factor: float | None = None
    bias_lr_factor: float | None = None
    layer_lr_factors: dict[str, float] | None = None
    color_noise: NoiseKind | None = None

    def __post_init__(self) -> None:
        layers = {f"layer_lr_factors.{layer}": lr for layer, lr in (self.layer_lr_factors or {}).items()}
        for name, value in {
            "lr_factor": self.lr_factor,
            "bias_lr_factor": self.bias_lr_factor,
            **layers,
        }.items():
            if value is not None and not 0 <= value <= 1e6:
                raise ValueError(f"{name} is {value:g}, not within 0..1e+06")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run's settings; docs/recipes.md explains each.

    Attributes:
        name: shown in tables.
        arch: `alexnet`, `alexnet_source`, `alexnet_owt` or `alexnet_bn`.
        width: multiplier of hidden channels and units.
        crop: side of the crops, pixels.
        mean: subtract the per-"channel" mean or the mean "image"'s center crop.
        std: divide by nothing ("none", as the paper) or by each "channel"'s standard deviation.
        color_noise: "none", or PCA noise as the "paper" or the "source" has it.
        augmentation: "paper" (random crop) or "random-resized-crop"; both mirror.
        shuffle_buffer: samples of a process among which the next is drawn.
        epochs: passes over the training split.
        batch_size: the global batch, over all processes.
        seed: of init, order, augmentation and dropout.
        optimizer: "paper" (the rate inside the velocity), "sgd" (torch's, the rate outside) or "lars"
            (layer-wise rates for large batches).
        trust: LARS's trust coefficient.
        rate: learning rate of weights at the start, or at the peak of a warm-up.
        scaling: how `--set batch_size` changes the rate: not at all ("none"), in proportion ("linear"),
            or with the square root ("sqrt").
        momentum: of the velocity.
        weight_decay: L2 coefficient.
        decay_biases: whether biases and normalization parameters decay too.
        bias_rate: factor on the rate of biases.
        schedule: "constant", "plateau" (÷ 10 when validation error stops improving), "cosine" or
            "polynomial" ((1 − t)^power, t from 0 after the warm-up to 1 at the end).
        power: of the polynomial.
        warmup_epochs: linear rise from 0 to `lr` first.
        plateau_patience: epochs without improvement before a drop.
        plateau_drops: drops at most.
        label_smoothing: share of the target spread over all classes.
        precision: arithmetic of the forward and backward pass; "bfloat16" is float16 with loss scaling on
            GPUs that lack it, and float32 on processors that do.
        tf32: let GPUs round float32 factors to TensorFloat-32's 10 bits.
        accumulation_steps: parts in which a process takes its batch, for less memory; batch normalization
            then sees the parts.
        ema_decay: decay of the averaged weights that are evaluated and kept in the end, or 0 for none.
        grad_compression: of gradients between processes: "none", "bf16" (NCCL only) or "powersgd".
        compile: use torch.compile where a compiler is found.
        channels_last: memory format of images and weights.
        stages: changes at given epochs, in order.
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
    shuffle_buffer: int = 2048
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
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    tf32: bool = False
    accumulation_steps: int = 1
    ema_decay: float = 0.0
    grad_compression: Literal["none", "bf16", "powersgd"] = "none"
    compile: bool = True
    channels_last: bool = False
    stages: tuple[Stage, ...] = field(default=())

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "epochs": (1, 100_000),
            "lr": (1e-12, 1e6),
            "width": (0.01, 8),
            "crop": (64, 4096),
            "shuffle_buffer": (1, 1 << 24),
            "batch_size": (1, 1 << 20),
            "trust_coefficient": (1e-12, 1e6),
            "power": (0, 100),
            "momentum": (0, 1),
            "weight_decay": (0, 1),
            "bias_lr_factor": (0, 1e6),
            "warmup_epochs": (0, 100_000),
            "plateau_patience": (1, 100_000),
            "plateau_drops": (0, 100),
            "label_smoothing": (0, 1),
            "accumulation_steps": (1, 1 << 20),
            "ema_decay": (0, 0.999999),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name):g}, not within {low:g}..{high:g}")
        epochs = [stage.epoch for stage in self.stages]
        if epochs != sorted(set(epochs)) or any(epoch < 0 for epoch in epochs):
            raise ValueError(f"stages must have rising epochs from 0 on, not {epochs}")

    def stage_at(self, epoch: int) -> Stage:
        """The settings in force at an epoch, with every attribute filled in."""
        now: dict[str, Any] = {
            "lr_factor": 1.0,
            "bias_lr_factor": self.bias_lr_factor,
            "layer_lr_factors": {},
            "color_noise": self.color_noise,
        }
        for stage in self.stages:
            if stage.epoch <= epoch:
                now |= {name: value for name, value in asdict(stage).items() if value is not None}
        return Stage(**(now | {"epoch": epoch}))

    def to_toml(self) -> str:
        """The recipe as TOML that `load_recipe` reads back to an equal one."""
        values = asdict(self)
        values["stages"] = [
            {name: value for name, value in stage.items() if value is not None} for stage in values["stages"]
        ]
        return tomli_w.dumps(values)


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name (`paper`) or path (`my.toml`) and apply `key=value` overrides.

    Another batch size changes the rate by the recipe's scaling rule, unless the rate is given too.

    Raises:
        UsageError: no such recipe, not TOML, an unknown key, or a value of the wrong type or range.
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
    """A recipe's rate, which is for `batch_size`, as its scaling rule makes it for its own batch.

    "linear" is Goyal et al. 2017's rule, "sqrt" Krizhevsky's of 2014 ("One weird trick", section 5), which
    keeps the variance of the gradient.
    """
    factor = recipe.batch_size / batch_size
    return recipe.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[recipe.scaling]


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """Check a table of settings and make a recipe of it.

    Raises:
        UsageError: names `where`, the offending key or value, and the nearest known key.
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


def _find(name_or_path: str) -> Traversable:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"recipe {path}: no such file")
        return path
    known = sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir())
    if name_or_path not in known:
        raise UsageError(
            f"recipe {name_or_path!r}: unknown; known are {', '.join(known)}, or give a .toml file"
        )
    return RECIPES / f"{name_or_path}.toml"


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"--set {text!r}: expected key=value, such as batch_size=64")
    value = value.strip()
    for candidate in (value, value.lower(), f"0{value}"):  # True as TOML's true, .01 as its 0.01
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
    """`Expected `int`, got `str` - at `$.epochs`` → `epochs: expected int, got str`."""
    text, _, at = message.replace("`", "").partition(" - at $")
    if text.startswith("Invalid enum value"):
        choices = get_args(get_type_hints(Recipe).get(at.lstrip("."), None))
        text += f", choose from {', '.join(map(repr, choices))}" if choices else ""
    return f"{at.lstrip('.')}: {text[0].lower()}{text[1:]}" if at else text
