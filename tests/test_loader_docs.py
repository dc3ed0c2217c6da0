"""The examples of docs/loader.md run unchanged except for smaller crops."""

import re
from pathlib import Path

import pytest
import torch

from pipeline import Dataset, Loader, TrainView

DOCS = Path(__file__).parents[1] / "docs" / "loader.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)


def run(example, dataset, folder, monkeypatch):
    """Run an example in a folder that holds the dataset, with crops of 64 pixels; return its names."""
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(folder)
    (folder / "shards").symlink_to(dataset.root)
    names: dict[str, object] = {}
    exec(example.replace("224", "64"), names)
    return names


def test_the_first_example_runs_and_its_checkpoint_goes_on(tiny_dataset, tmp_path, monkeypatch):
    names = run(EXAMPLES[0], tiny_dataset, tmp_path, monkeypatch)
    saved = torch.load("checkpoint.pt", weights_only=True)
    assert (saved["data"]["epoch"], saved["data"]["batch"]) == (2, 0)
    view = names["view"]
    assert isinstance(view, TrainView)
    with Loader(Dataset.open("shards"), "train", view, 32, seed=1) as loader:
        loader.load_state_dict(saved["data"])
        assert loader.epoch == 2
        assert len(loader) == len(list(loader)) == 2


@pytest.mark.parametrize("example", EXAMPLES[1:])
def test_the_other_examples_run_and_learn(example, tiny_dataset, tmp_path, monkeypatch):
    names = run(example, tiny_dataset, tmp_path, monkeypatch)
    assert names["loss"].isfinite()
    assert all(parameter.grad.any() for parameter in names["model"].parameters())


@pytest.mark.parametrize(
    "name", ["set_epoch", "set_position", "close", "state_dict", "load_state_dict", "stats"]
)
def test_what_the_text_names_is_there(name):
    assert f"`{name}" in DOCS.read_text() or f".{name}" in DOCS.read_text()
    assert hasattr(Loader, name)
