"""The example of docs/loader.md runs unchanged except for smaller crops."""

import re
from pathlib import Path

import pytest
import torch

from pipeline import Dataset, Loader, TrainView

DOCS = Path(__file__).parents[1] / "docs" / "loader.md"


def test_the_example_runs_and_its_checkpoint_goes_on(tiny_dataset, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(tiny_dataset.root)
    names: dict[str, object] = {}
    exec(example.replace("224", "64"), names)
    saved = torch.load("checkpoint.pt", weights_only=True)
    assert (saved["data"]["epoch"], saved["data"]["batch"]) == (2, 0)
    view = names["view"]
    assert isinstance(view, TrainView)
    with Loader(Dataset.open("shards"), "train", view, 32, seed=1) as loader:
        loader.load_state_dict(saved["data"])
        assert loader.epoch == 2
        assert len(loader) == len(list(loader)) == 2


@pytest.mark.parametrize(
    "name", ["set_epoch", "set_position", "close", "state_dict", "load_state_dict", "stats"]
)
def test_what_the_text_names_is_there(name):
    assert f"`{name}" in DOCS.read_text() or f".{name}" in DOCS.read_text()
    assert hasattr(Loader, name)
