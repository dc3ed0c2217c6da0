"""Checkpoints of other programs give the weights that a plain state dict gives, however they were saved."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.eval import main as evaluate
from pipeline.errors import UsageError
from trainer.models.alexnet import build_model
from trainer.runs import load_model
from trainer.runs.external_weights import ExternalWeights, Preprocessing

EXTERNAL = ExternalWeights("alexnet_owt", Preprocessing((0, 0, 0), (1, 1, 1), 72, 64))


@pytest.fixture(scope="module")
def two():
    """State dicts of two networks."""
    torch.manual_seed(0)
    return [build_model("alexnet_owt", 10, 0.0625).state_dict() for _ in range(2)]


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def inside(state, word):
    """Name the layers as DataParallel does around a part: `features.module.0.weight`."""
    return {name.replace("features.", f"features.{word}."): value for name, value in state.items()}


def save_old_numpy(state, path):
    """Write a file with arrays and a number as NumPy 1 pickles them."""
    content = {"state_dict": arrays(state), "best_acc1": np.float64(56.5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


# What a program saves → what is said to be removed from its keys.
FILES = {
    "part in DataParallel": (lambda state: {"state_dict": inside(state, "module")}, "module."),
    "all in DataParallel": (lambda state: {"model": prefixed(state, "module.")}, "module."),
    "Lightning": (lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3}, "model."),
    "nested": (
        lambda state: prefixed(inside(state, "net"), "module._orig_mod.backbone."),
        "module._orig_mod.backbone., module._orig_mod.backbone.net.",
    ),
    "another prefix": (lambda state: prefixed(state, "encoder."), "encoder."),
    "another key": (lambda state: {"best_model": state, "epoch": np.int64(3)}, ""),
    "deep": (lambda state: {"state": {"student": {"state_dict": state}}}, ""),
    "with its optimizer": (
        lambda state: {"model": state, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}},
        "",
    ),
    "a NumPy number": (lambda state: {"state_dict": state, "best_acc1": np.float64(56.5)}, ""),
    "arrays": (arrays, ""),
    "arrays of the other byte order": (
        lambda state: {name: value.astype(">f4") for name, value in arrays(state).items()},
        "",
    ),
    "one network under two names": (
        lambda state: prefixed(state, "model.") | prefixed(state, "net."),
        "model.",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_each_file_gives_the_weights_of_the_plain_one(two, tiny_dataset, tmp_path, kind):
    make, removed = FILES[kind]
    path = tmp_path / "weights.pth"
    torch.save(make(two[0]), path)
    check(path, tiny_dataset, two[0], f"removed {removed} from its keys" if removed else "")


def test_numpy_1_and_the_old_file_format_too(two, tiny_dataset, tmp_path):
    save_old_numpy(two[0], tmp_path / "weights.pth")
    check(tmp_path / "weights.pth", tiny_dataset, two[0])


def check(path, dataset, expected, note="", **options):
    (model,), _, notes = load_model.load_models([path], dataset, EXTERNAL, **options)
    found = model.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(notes) == (2 if note else 1)
    assert note in notes[-1]


AVERAGED = {
    "timm": lambda model, ema: {"state_dict": model, "state_dict_ema": ema},
    "torchvision": lambda model, ema: {
        "model": model,
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed(ema, "module.")},
    },
    "one dict": lambda model, ema: {"state_dict": prefixed(model, "model.") | prefixed(ema, "ema_model.")},
}


@pytest.mark.parametrize("kind", AVERAGED)
@pytest.mark.parametrize(("weights", "taken"), [(None, 1), ("ema", 1), ("model", 0)])
def test_averaged_weights_are_taken_unless_the_models_own_are_asked_for(
    two, tiny_dataset, tmp_path, kind, weights, taken
):
    torch.save(AVERAGED[kind](*two), tmp_path / "weights.pth")
    options = {} if weights is None else {"weights": weights}
    (model,), _, notes = load_model.load_models([tmp_path / "weights.pth"], tiny_dataset, EXTERNAL, **options)
    assert torch.equal(model.model.state_dict()["classifier.6.weight"], two[taken]["classifier.6.weight"])
    assert any(("averaged (EMA)" if taken else "model's own") in note for note in notes)
    assert not any("ignored" in note for note in notes[:2])


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (
            lambda a, b: prefixed(a, "encoder_q.") | prefixed(b, "encoder_k."),
            {},
            ["encoder_q.", "encoder_k."],
        ),
        (lambda a, b: {"model": a, "net": b}, {}, ["model.", "net."]),
        (lambda a, b: {"teacher": a, "student": b}, {}, ["teacher.", "student."]),
        (lambda a, b: {"state_dict": a}, {"weights": "ema"}, ["no averaged"]),
        (lambda a, b: {"state_dict_ema": a}, {"weights": "model"}, ["averaged (EMA) weights only"]),
        (lambda a, b: {"state_dict": a}, {"weights": "emma"}, ["'ema'"]),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_the_choices(two, tiny_dataset, tmp_path, make, options, named):
    torch.save(make(*two), tmp_path / "weights.pth")
    with pytest.raises(UsageError) as error:
        load_model.load_models([tmp_path / "weights.pth"], tiny_dataset, EXTERNAL, **options)
    assert all(name in str(error.value) for name in named), error.value


def test_the_command_says_which_weights_it_took(two, tiny_dataset, tmp_path):
    torch.save({"state_dict": two[0], "state_dict_ema": two[1]}, tmp_path / "weights.pth")
    (tmp_path / "how.toml").write_text("mean = [0, 0, 0]\nstd = [1, 1, 1]\nsize = 72\ncrop = 64\n")
    files = [tmp_path / "weights.pth", "--data", tiny_dataset.root]
    described = ["--arch", "alexnet_owt", "--preprocessing", tmp_path / "how.toml", "--weights", "model"]
    result = CliRunner().invoke(evaluate, [*map(str, [*files, *described, "--cpus", 1])])
    assert result.exit_code == 0, result.output
    assert "takes the model's own weights, state_dict." in result.stderr
