"""Recipes: the shipped ones, overrides, stages, and error messages for invalid settings."""

import tomllib
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, strategies as st

from pipeline.errors import UsageError
from trainer.models.alexnet import ARCHITECTURES, build_model, layer_names
from trainer.recipe import RECIPES, Recipe, Stage, load_recipe, recipe_of

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))
MINIMUM = {"name": "test", "arch": "alexnet", "epochs": 90, "lr": 0.01}


def test_the_shipped_recipes_are_these():
    assert SHIPPED == ["demo", "modern", "paper", "small", "source"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.arch in ARCHITECTURES
    copy = tmp_path / "recipe.toml"
    copy.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(copy)) == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_name_layers_that_their_net_has(name):
    recipe = load_recipe(name)
    known = layer_names(build_model(recipe.arch, 10, 0.05, 64))
    assert {layer for stage in recipe.stages for layer in stage.layer_lr_factors or {}} <= set(known)


def test_paper_recipe_is_section_5():
    recipe = load_recipe("paper")
    assert (recipe.arch, recipe.optimizer, recipe.batch_size) == ("alexnet", "paper", 128)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 0.0005)
    assert (recipe.schedule, recipe.plateau_drops, recipe.epochs) == ("plateau", 3, 90)
    assert (recipe.mean, recipe.std, recipe.color_noise) == ("image", "none", "paper")
    assert (recipe.crop, recipe.width, recipe.precision) == (224, 1.0, "float32")
    assert recipe.bias_lr_factor == 1.0
    assert recipe.stages == ()


def test_source_recipe_is_the_released_runs():
    recipe = load_recipe("source")
    assert (recipe.arch, recipe.optimizer, recipe.batch_size) == ("alexnet_source", "paper", 128)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 0.0005)
    assert (recipe.decay_biases, recipe.bias_lr_factor) == (False, 2.0)
    assert (recipe.mean, recipe.color_noise, recipe.epochs) == ("image", "source", 90)
    assert (recipe.crop_group, load_recipe("paper").crop_group) == (32, 1)


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(Recipe).items() if get_args(kind)}
VALUES = {
    "arch": st.sampled_from(CHOICES["arch"]),
    "width": st.floats(0.01, 8),
    "crop": st.integers(64, 4096),
    "mean": st.sampled_from(CHOICES["mean"]),
    "std": st.sampled_from(CHOICES["std"]),
    "color_noise": st.sampled_from(("none", "paper", "source")),
    "augmentation": st.sampled_from(("paper", "random-resized-crop")),
    "crop_group": st.integers(1, 1 << 20),
    "epochs": st.integers(100, 100_000),
    "batch_size": st.integers(1, 1 << 20),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "optimizer": st.sampled_from(CHOICES["optimizer"]),
    "trust_coefficient": st.floats(1e-12, 1e6),
    "scaling": st.sampled_from(CHOICES["scaling"]),
    "power": st.floats(0, 100),
    "lr": st.floats(1e-12, 1e6),
    "momentum": st.floats(0, 1),
    "weight_decay": st.floats(0, 1),
    "decay_biases": st.booleans(),
    "bias_lr_factor": st.floats(0, 1e6),
    "schedule": st.sampled_from(CHOICES["schedule"]),
    "warmup_epochs": st.floats(0, 90),
    "plateau_patience": st.integers(1, 100_000),
    "plateau_drops": st.integers(0, 100),
    "label_smoothing": st.floats(0, 1),
    "precision": st.sampled_from(CHOICES["precision"]),
    "tf32": st.booleans(),
    "accumulation_steps": st.integers(1, 1 << 20),
    "ema_decay": st.floats(0, 0.999999),
    "grad_compression": st.sampled_from(CHOICES["grad_compression"]),
    "compile": st.booleans(),
    "channels_last": st.booleans(),
}


def as_override(name, value) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{name}={text}"


def test_the_property_below_knows_every_setting():
    assert set(VALUES) | {"name", "stages"} == {field.name for field in fields(Recipe)}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_overrides_arrive_and_survive_toml(values):
    recipe = load_recipe("paper", [as_override(name, value) for name, value in values.items()])
    expected = replace(load_recipe("paper"), **values)
    if "lr" not in values:
        factor = expected.batch_size / 128
        by = {"none": 1.0, "linear": factor, "sqrt": factor**0.5}[expected.scaling]
        expected = replace(expected, lr=0.01 * by)
    assert recipe == expected
    assert recipe_of(tomllib.loads(recipe.to_toml()), "copy") == recipe


STAGES = st.lists(
    st.builds(
        Stage,
        epoch=st.integers(0, 1000),
        lr_factor=st.none() | st.floats(0, 10),
        bias_lr_factor=st.none() | st.floats(0, 10),
        layer_lr_factors=st.none() | st.dictionaries(st.text(max_size=8), st.floats(0, 10), max_size=3),
        color_noise=st.sampled_from((None, "none", "paper", "source")),
    ),
    max_size=4,
    unique_by=lambda stage: stage.epoch,
)


@given(STAGES)
def test_stages_survive_toml(stages):
    recipe = Recipe(**MINIMUM, stages=tuple(sorted(stages, key=lambda stage: stage.epoch)))
    assert recipe_of(tomllib.loads(recipe.to_toml()), "copy") == recipe


def test_overrides_come_after_the_file_and_the_last_wins():
    assert load_recipe("paper", ["lr=0.5", "lr=0.25"]).lr == 0.25
    assert load_recipe("paper", [" arch = alexnet_bn "]).arch == "alexnet_bn"
    assert load_recipe("paper", ['arch="alexnet_bn"']).arch == "alexnet_bn"
    assert load_recipe("paper", ["stages=[{epoch=3, lr_factor=0.1}]"]).stages == (
        Stage(epoch=3, lr_factor=0.1),
    )


def test_a_file_without_a_name_is_named_after_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('arch = "alexnet"\nepochs = 3\nlr = 0.1\n', encoding="utf-8")
    assert load_recipe(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batchsize=3"], r"unknown key 'batchsize'; did you mean 'batch_size'\?"),
        (
            ["stages=[{epoch=1, lr_facter=0.1}]"],
            r"stages: unknown key 'lr_facter'; did you mean 'lr_factor'",
        ),
        (["epochs=many"], "epochs: expected int, got str"),
        (["compile=1"], "compile: expected bool, got int"),
        (["arch=alexnetbn"], "arch: .*'alexnetbn'; did you mean 'alexnet_bn'"),
        (["stages=[{epoch=1, color_noise='papper'}]"], "color_noise: .*did you mean 'paper'"),
        (["stages=5"], "stages: expected array, got int"),
        (["stages=[5]"], r"stages\[0\]: expected object, got int"),
        (["stages=[{lr_factor=1.0}]"], r"stages\[0\]: .*missing required field epoch"),
        (["stages=[{epoch=3}, {epoch=3}]"], "rising epochs"),
        (["stages=[{epoch=-1}]"], "rising epochs"),
        (["stages=[{epoch=1, lr_factor=-0.1}]"], "lr_factor is -0.1"),
        (["stages=[{epoch=1, layer_lr_factors={conv1=inf}}]"], "conv1.* is inf"),
        (["epochs=0"], r"epochs is 0, not within 1\.\.100000"),
        (["crop=63"], r"crop is 63, not within 64\.\."),
        (["lr"], "--set 'lr': expected key=value"),
        (["=3"], "--set '=3': expected key=value"),
    ],
)
def test_wrong_settings_are_refused_in_the_terms_of_the_file(overrides, words):
    with pytest.raises(UsageError, match=words):
        load_recipe("paper", overrides)


@pytest.mark.parametrize(
    "override",
    [
        *("batch_size=0", "lr=0", "lr=-0.1", "lr=nan", "lr=inf", "width=0", "momentum=1.5"),
        *("warmup_epochs=-1", "label_smoothing=2", "plateau_patience=0"),
    ],
)
def test_numbers_out_of_range_are_refused(override):
    with pytest.raises(UsageError, match=override.replace("=", " is ")):
        load_recipe("paper", [override])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="'papre': unknown; did you mean 'paper'"):
        load_recipe("papre")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"mine\.toml: no such file"):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("content", [b"lr = = 1", b"lr = 0.1 0.2", b"\xff\xfe", b"[[stages]\nepoch = 1"])
def test_unreadable_toml_is_named(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml: not valid TOML"):
        load_recipe(str(path))


def test_a_missing_required_setting_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('arch = "alexnet"\nepochs = 3\n', encoding="utf-8")
    with pytest.raises(UsageError, match="lr"):
        load_recipe(str(path))


def full_stage(epoch, lr_factor, bias_lr_factor, layer_lr_factors, color_noise) -> Stage:
    return Stage(
        epoch=epoch,
        lr_factor=lr_factor,
        bias_lr_factor=bias_lr_factor,
        layer_lr_factors=layer_lr_factors,
        color_noise=color_noise,
    )


def test_a_stage_holds_until_the_next_that_names_the_same():
    recipe = Recipe(
        **MINIMUM,
        bias_lr_factor=2.0,
        color_noise="source",
        stages=(
            Stage(epoch=2, lr_factor=0.1),
            Stage(epoch=4, layer_lr_factors={"conv1": 0.0}, color_noise="none"),
            Stage(epoch=6, lr_factor=0.01, bias_lr_factor=1.0),
        ),
    )
    assert recipe.stage_at(0) == full_stage(0, 1.0, 2.0, {}, "source")
    assert recipe.stage_at(3) == full_stage(3, 0.1, 2.0, {}, "source")
    assert recipe.stage_at(5) == full_stage(5, 0.1, 2.0, {"conv1": 0.0}, "none")
    assert recipe.stage_at(60) == full_stage(60, 0.01, 1.0, {"conv1": 0.0}, "none")


def test_modern_scales_its_rate_with_the_batch_and_paper_does_not():
    assert load_recipe("modern", ["batch_size=4096"]).lr == pytest.approx(8.0)
    assert load_recipe("modern", ["batch_size=4096", "scaling=sqrt"]).lr == pytest.approx(4.0)
    assert load_recipe("modern", ["batch_size=4096", "lr=0.5"]).lr == 0.5
    assert load_recipe("modern", ["epochs=3"]).lr == 2.0
    assert load_recipe("paper", ["batch_size=256"]).lr == 0.01
