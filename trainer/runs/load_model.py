"""A trained net with what is known of its run: its name, its folder and its dataset."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.models.classifier import Classifier, Spec
from trainer.runs import checkpoint

_RUN_FILE = "run.json"


@dataclass(frozen=True)
class Trained:
    """A checkpoint, opened.

    Attributes:
        name: of the run's folder, or of the checkpoint file where it lies outside one; for titles.
        folder: the run's folder, or None.
        checkpoint: the file.
        classifier: in evaluation mode, on the CPU.
    """

    name: str
    folder: Path | None
    checkpoint: Path
    classifier: Classifier

    @property
    def spec(self) -> Spec:
        """What the net was trained on."""
        return self.classifier.spec


def open_trained(run_or_checkpoint: Path) -> Trained:
    """Read a run's best checkpoint, else its last, or a checkpoint file.

    Raises:
        UsageError: no checkpoint there, or one that cannot be read.
    """
    file = checkpoint.find(run_or_checkpoint)
    classifier = checkpoint.classifier_of(checkpoint.load(file), file).eval()
    folder = file.resolve().parent
    if not (folder / _RUN_FILE).is_file():
        return Trained(file.stem, None, file, classifier)
    name = folder.name if run_or_checkpoint.is_dir() else f"{folder.name}/{file.name}"
    return Trained(name, folder, file, classifier)


def run_facts(folder: Path) -> dict[str, Any]:
    """What run.json says: recipe, dataset and its hash, machine.

    Raises:
        UsageError: no such file, or a damaged one.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        raise UsageError(f"{folder}: no run's folder (no {_RUN_FILE}); name the folder that a training made")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: damaged ({error})") from error


def dataset_of(trained: Trained, data: str | Path | None = None) -> Dataset:
    """Open the dataset that a net was trained on, or the one given.

    Raises:
        UsageError: none is known or it is not there; or its pictures are of another size than those
            that the net was trained on.
    """
    if data is None:
        if trained.folder is None:
            raise UsageError(f"{trained.checkpoint}: lies in no run's folder; name its dataset with --data")
        data = str(run_facts(trained.folder).get("dataset", ""))
        if "://" not in data and not Path(data).is_dir():
            raise UsageError(
                f"{trained.folder}: its dataset was {data}, which is not there; name its place with --data"
            )
    dataset = Dataset.open(data)
    if dataset.image.size != trained.spec.size:
        raise UsageError(
            f"{trained.checkpoint}: trained on pictures with a shorter side of {trained.spec.size} px, "
            f"{dataset.url} has {dataset.image.size} px; prepare the data with --size {trained.spec.size}"
        )
    return dataset


def refuse_other_classes(trained: Trained, dataset: Dataset) -> None:
    """Refuse a dataset whose labels mean something else than the net's outputs.

    Raises:
        UsageError: names classes that only one of them has.
    """
    ours, theirs = list(trained.spec.classes), dataset.classes
    if ours == theirs:
        return
    only = [
        f"only in the {where}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for where, names in (
            ("checkpoint", sorted(set(ours) - set(theirs))),
            ("data", sorted(set(theirs) - set(ours))),
        )
        if names
    ]
    raise UsageError(
        f"{trained.checkpoint}: knows {len(ours)} classes, {dataset.url} has {len(theirs)} "
        f"({'; '.join(only) or 'in another order'}); name data with the same classes"
    )


def dataset_name(dataset: Dataset) -> str:
    """The last part of a dataset's place, for titles."""
    local = dataset.store.local
    return local.resolve().name if local else dataset.url.rstrip("/").rsplit("/", 1)[-1]


def class_names(trained: Trained, dataset: Dataset | None) -> list[str]:
    """Names in label order: the dataset's where it knows the class, else the checkpoint's, else ids."""
    known = dict(zip(trained.spec.classes, trained.spec.names, strict=False))
    known |= {info.id: info.name for info in dataset.manifest.classes} if dataset else {}
    return [known.get(name, name) for name in trained.spec.classes]


def dataset_if_any(trained: Trained) -> Dataset | None:
    """The dataset that a run names, or None where it is not there: for class names alone."""
    try:
        return dataset_of(trained)
    except UsageError:
        return None


def label_of(trained: Trained, dataset: Dataset | None, wanted: str) -> int:
    """The class number of an id, or of a name of the dataset's.

    Raises:
        UsageError: neither; the nearest is named.
    """
    for known in (list(trained.spec.classes), class_names(trained, dataset)):
        if wanted in known:
            return known.index(wanted)
    near = difflib.get_close_matches(wanted, {*trained.spec.classes, *known}, n=1, cutoff=0.0)
    raise UsageError(f"the net knows no class {wanted!r}; did you mean {near[0]!r}?")
