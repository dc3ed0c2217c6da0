"""Loading a run's model, and finding its dataset."""

import dataclasses
import json
import shutil
from functools import partial

import pytest

from pipeline import UsageError
from pipeline.dataset.manifest import write_manifest
from trainer import load_model
from trainer.runs.class_match import refuse_other_classes
from trainer.runs.load_model import (
    class_names,
    dataset_if_any,
    dataset_of,
    label_of,
    run_facts,
)


@pytest.fixture
def moved(tiny_run, tmp_path):
    """A copy of the run whose dataset is missing."""
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run, folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"dataset": str(tmp_path / "gone")}))
    return folder


def test_a_run_is_named_after_its_folder(tiny_run):
    trained = load_model(tiny_run)
    assert (trained.name, trained.folder) == ("tiny-run", tiny_run)
    assert trained.checkpoint.name == "best.pt"
    assert not trained.classifier.training


def test_a_checkpoint_of_a_run_and_one_alone(tiny_run, tiny_checkpoint):
    assert load_model(tiny_run / "last.pt").name == "tiny-run/last.pt"
    alone = load_model(tiny_checkpoint)
    assert (alone.name, alone.folder) == ("tiny", None)
    with pytest.raises(UsageError, match="not in a run's folder; name its dataset with --data"):
        dataset_of(alone)


def test_the_runs_dataset_is_found_or_named(tiny_run, tiny_dataset, moved):
    assert dataset_of(load_model(tiny_run)).fingerprint == tiny_dataset.fingerprint
    with pytest.raises(UsageError, match=r"its dataset was .*gone, which is not there; .*--data"):
        dataset_of(load_model(moved))
    assert dataset_if_any(load_model(moved)) is None
    assert dataset_of(load_model(moved), tiny_dataset.root).fingerprint == tiny_dataset.fingerprint


def test_a_damaged_or_missing_run_file(moved, tmp_path):
    (moved / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        run_facts(moved)
    with pytest.raises(UsageError, match="not a run's folder"):
        run_facts(tmp_path)


def changed(dataset, folder, **changes):
    """Copy the dataset's manifest with changes; the shards are the same."""
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(dataset.root / split)
    write_manifest(folder, dataclasses.replace(dataset.manifest, **changes))
    return folder


def test_images_of_another_size_are_refused(tiny_run, tiny_dataset, tmp_path):
    image = dataclasses.replace(tiny_dataset.image, size=80)
    folder = changed(tiny_dataset, tmp_path / "d", image=image)
    with pytest.raises(UsageError, match=r"shorter side of 72 px, .* has 80 px"):
        dataset_of(load_model(tiny_run), folder)


def test_other_classes_are_refused_and_named(tiny_run, tiny_dataset, tmp_path):
    trained = load_model(tiny_run)
    refuse = partial(refuse_other_classes, trained.checkpoint, trained.spec)
    refuse(tiny_dataset)
    classes = tiny_dataset.manifest.classes
    fewer = changed(tiny_dataset, tmp_path / "fewer", classes=classes[1:])
    with pytest.raises(UsageError, match=rf"10 .* has 9 \(only in the checkpoint: {classes[0].id}\)"):
        refuse(dataset_of(trained, fewer))
    turned = changed(tiny_dataset, tmp_path / "turned", classes=classes[::-1])
    with pytest.raises(UsageError, match="in another order"):
        refuse(dataset_of(trained, turned))


def test_names_of_classes_come_from_the_dataset(tiny_run, tiny_dataset, tmp_path):
    trained = load_model(tiny_run)
    classes = tuple(dataclasses.replace(c, name=f"the {c.id}") for c in tiny_dataset.manifest.classes)
    named = dataset_of(trained, changed(tiny_dataset, tmp_path / "d", classes=classes))
    ids = list(trained.spec.classes)
    assert class_names(trained, None) == ids
    assert class_names(trained, named) == [f"the {name}" for name in ids]
    assert label_of(trained, named, ids[3]) == label_of(trained, named, f"the {ids[3]}") == 3
    with pytest.raises(UsageError, match=f"no class 'the {ids[0]}x'; did you mean 'the {ids[0]}'"):
        label_of(trained, named, f"the {ids[0]}x")
