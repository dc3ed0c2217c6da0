"""Files that are no checkpoints: one line says what they are and what to do, and nothing in them runs."""

import contextlib
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UsageError
from trainer.models.alexnet import build_model
from trainer.runs import load_model
from trainer.runs.external_weights import ExternalWeights, Preprocessing

EXTERNAL = ExternalWeights("alexnet_owt", Preprocessing((0, 0, 0), (1, 1, 1), 72, 64))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return build_model("alexnet_owt", 10, 0.0625)


def refusal(path, dataset):
    """Return the message of the refusal, which is the same with and without a description of the network."""
    messages = []
    for external in (EXTERNAL, None):
        with pytest.raises(UsageError) as error:
            load_model.load_models([path], dataset, external)
        messages.append(str(error.value))
    with pytest.raises(UsageError) as error:
        load_model.load_model(path)
    assert {*messages, str(error.value)} == {messages[0]}
    assert "\n" not in messages[0]
    assert "--arch" not in messages[0]
    return messages[0]


@pytest.mark.parametrize("save", ["zip", "old", "in a dict", "beside weights", "TorchScript"])
def test_a_whole_module_is_refused_with_the_command_that_saves_its_weights(
    module, tiny_dataset, tmp_path, save
):
    path = tmp_path / "it's whole.pth"
    if save == "TorchScript":
        with warnings.catch_warnings(action="ignore"):  # torch advises against TorchScript
            torch.jit.trace(module, torch.zeros(1, 3, 224, 224)).save(path)
    else:
        content = {
            "in a dict": {"model": module, "epoch": 3},
            "beside weights": {"state_dict": module.state_dict(), "config": Path("config")},
        }
        torch.save(content.get(save, module), path, _use_new_zipfile_serialization=save != "old")
    message = refusal(path, tiny_dataset)
    python, option, code = shlex.split(message[message.index("python -c") :])
    assert (python, option) == ("python", "-c")
    with contextlib.chdir(tmp_path), warnings.catch_warnings(action="ignore"):
        exec(code, {})
    (model,), *_ = load_model.load_models([tmp_path / "it's whole-state.pth"], tiny_dataset, EXTERNAL)
    expected = module.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.9, 0.9999])
def test_a_file_that_is_cut_short_is_refused_with_its_size(module, tiny_dataset, tmp_path, kind, keep):
    path = tmp_path / f"weights.{kind if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(module.state_dict(), path)
    else:
        torch.save(module.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    message = refusal(path, tiny_dataset)
    assert f"{int(len(data) * keep):,} bytes" in message
    assert message.endswith("download it again")


def test_what_is_no_torch_file_is_shown(tiny_dataset, tmp_path):
    (tmp_path / "weights.pth").write_text("<!DOCTYPE html><title>404")
    assert "<!DOCTY" in refusal(tmp_path / "weights.pth", tiny_dataset)
