"""Load trained models: one with its run and dataset, or several for an ensemble."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.arguments import check_number, checked
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.models.classifier import Classifier, Spec
from trainer.runs import checkpoint
from trainer.runs.checkpoint_file import read_file
from trainer.runs.class_match import ClassesBy, ClassMatch, match_classes, over_classes
from trainer.runs.external_weights import ExternalWeights, is_external, load_external
from trainer.runs.state_dict import WeightsChoice, capped

_RUN_FILE = "run.json"
_CHECKPOINTS = (checkpoint.LAST, checkpoint.BEST)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with its checkpoint and run.

    Attributes:
        name: Name for titles: of the run's folder, or of a checkpoint file outside of one.
        folder: The run's folder, or None.
        checkpoint: The checkpoint file.
        classifier: The classifier, in evaluation mode, on the CPU.
        notes: Which of its weights were taken, for the user, where the checkpoint has several.
    """

    name: str
    folder: Path | None
    checkpoint: Path
    classifier: Classifier
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> Spec:
        """Architecture, classes and preprocessing of the network."""
        return self.classifier.spec


@checked()
def load_model(run_or_checkpoint: Path, weights: WeightsChoice | None = None) -> LoadedModel:
    """Load a run's best checkpoint, else its last, or a checkpoint file.

    Args:
        run_or_checkpoint: Folder of a run, or a checkpoint file.
        weights: Which weights to take: the averaged (EMA) ones or the model's own; None for the averaged ones
            where the checkpoint has them.

    Raises:
        UsageError: There is no checkpoint, it cannot be read, or it does not have these `weights`.
    """
    file = checkpoint.find(run_or_checkpoint)
    classifier, notes = checkpoint.classifier_of(checkpoint.load(file), file, weights)
    folder = file.resolve().parent
    name, run = file.stem, None
    if (folder / _RUN_FILE).is_file():
        name, run = folder.name if run_or_checkpoint.is_dir() else f"{folder.name}/{file.name}", folder
    return LoadedModel(
        name=name, folder=run, checkpoint=file, classifier=classifier.eval(), notes=tuple(notes)
    )


def run_facts(folder: Path) -> dict[str, Any]:
    """Read run.json: recipe, dataset and its hash, machine.

    Raises:
        UsageError: The file is missing or damaged.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder}: not a run's folder (no {_RUN_FILE}); give the --out folder of a training"
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: damaged ({error})") from error


def dataset_of(trained: LoadedModel, data: str | Path | None = None) -> Dataset:
    """Open the dataset that a model was trained on, or another one.

    Args:
        trained: The model.
        data: Path or URL of a dataset; None for the one that the model's run.json names.

    Raises:
        UsageError: No dataset is known, it is not there, or its images have another size than those that
            the network was trained on.
    """
    dataset = Dataset.open(dataset_named([trained.checkpoint]) if data is None else data)
    _refuse_other_size(trained.checkpoint, trained.spec, dataset)
    return dataset


def dataset_named(runs_or_checkpoints: Sequence[Path]) -> str:
    """Return the path or URL of the dataset that runs were trained on, as their run.json names it.

    Raises:
        UsageError: A checkpoint is not in a run's folder, the runs name different datasets, or the dataset is
            not there.
    """
    found: dict[str, Path] = {}
    for path in runs_or_checkpoints:
        folder = checkpoint.find(path).resolve().parent
        if not (folder / _RUN_FILE).is_file():
            raise UsageError(f"{path}: not in a run's folder; name its dataset with --data")
        found.setdefault(str(run_facts(folder).get("dataset", "")), path)
    (data, path), *others = found.items()
    if others:
        raise UsageError(
            f"{path} was trained on {data}, and {others[0][1]} on {others[0][0]}; choose one with --data"
        )
    if "://" not in data and not Path(data).is_dir():
        raise UsageError(f"{path}: its dataset was {data}, which is not there; give its path with --data")
    return data


def newest_run(folder: Path = Path("runs")) -> Path:
    """Return the run below a folder whose last or best checkpoint is the youngest.

    Runs without a checkpoint are passed over.

    Raises:
        UsageError: There is none.
    """
    found = []
    for file in folder.rglob(_RUN_FILE):
        run = file.parent
        ages = [(run / name).stat().st_mtime_ns for name in _CHECKPOINTS if (run / name).is_file()]
        if ages:
            found.append((max(ages), run))
    if not found:
        raise UsageError(
            f"no run was named, and none below {folder} has a checkpoint ({' or '.join(_CHECKPOINTS)}); name "
            "one, or train with `alexnet-train`"
        )
    return max(found)[1]


@checked()
def over_dataset(trained: LoadedModel, dataset: Dataset, classes_by: ClassesBy = "name") -> LoadedModel:
    """Return a model whose outputs are a dataset's classes, in label order.

    Args:
        trained: The model; its classifier is changed in place.
        dataset: The dataset.
        classes_by: How classes are matched; see `match_classes`.

    Raises:
        UsageError: The model lacks a class of the dataset.
    """
    match = match_classes(trained.checkpoint, trained.spec, dataset, classes_by)
    lacking = [
        info.id
        for info, output in zip(dataset.manifest.classes, match.outputs, strict=True)
        if output is None
    ]
    if lacking:
        raise UsageError(
            f"{trained.checkpoint}: lacks {len(lacking):,} of the {len(match.outputs):,} classes of "
            f"{dataset.url} ({capped(lacking)}); give data whose classes it has"
        )
    over_classes(trained.classifier, match, dataset.manifest.classes)
    return trained


def _refuse_other_size(file: Path, spec: Spec, dataset: Dataset) -> None:
    if dataset.image.size != spec.size:
        raise UsageError(
            f"{file}: trained on images with a shorter side of {spec.size} px, {dataset.url} has "
            f"{dataset.image.size} px; prepare the data with --size {spec.size}"
        )


def dataset_name(dataset: Dataset) -> str:
    """Return the last component of a dataset's path or URL, for titles."""
    local = dataset.store.local
    return local.resolve().name if local else dataset.url.rstrip("/").rsplit("/", 1)[-1]


def class_names(trained: LoadedModel, dataset: Dataset | None) -> list[str]:
    """Return class names in label order: from the dataset, else from the checkpoint, else the class ids."""
    known = dict(zip(trained.spec.classes, trained.spec.names, strict=False))
    known |= {info.id: info.name for info in dataset.manifest.classes} if dataset else {}
    return [known.get(name, name) for name in trained.spec.classes]


def dataset_if_any(trained: LoadedModel) -> Dataset | None:
    """Open the dataset that a run names; None where that fails, as it is needed for class names only."""
    try:
        return dataset_of(trained)
    except UsageError:
        return None


def label_of(trained: LoadedModel, dataset: Dataset | None, wanted: str) -> int:
    """Return the class number of a class id or name.

    Args:
        trained: The model.
        dataset: Dataset with class names, or None.
        wanted: A class id, or a name as `class_names` returns it.

    Raises:
        UsageError: No such class; the message suggests the nearest.
    """
    for known in (list(trained.spec.classes), class_names(trained, dataset)):
        if wanted in known:
            return known.index(wanted)
    near = difflib.get_close_matches(wanted, {*trained.spec.classes, *known}, n=1, cutoff=0.0)
    raise UsageError(f"the network has no class {wanted!r}; did you mean {near[0]!r}?")


@checked()
def load_models(
    files: Sequence[Path],
    dataset: Dataset,
    external: ExternalWeights | None = None,
    weights: WeightsChoice | None = None,
    classes_by: ClassesBy = "name",
) -> tuple[list[Classifier], list[ClassMatch], list[str]]:
    """Load the checkpoints of an ensemble and check that they fit the data and each other.

    Args:
        files: Checkpoints of this toolkit or of other programs.
        dataset: Dataset to evaluate on.
        external: Architecture and preprocessing of the checkpoints of other programs, or None.
        weights: Which weights to take of checkpoints that hold averaged (EMA) ones beside the model's own;
            None for the averaged ones where there are any.
        classes_by: How the classes of networks and dataset are matched.

    Returns:
        The classifiers, on the CPU, with the dataset's classes as their outputs; how these were matched,
        without classes that one of the networks lacks; and notes for the user.

    Raises:
        UsageError: A checkpoint is unreadable or does not have these `weights`, its classes do not match the
            dataset's, its image size is another, its crop differs from the others', or `external` is given
            though every checkpoint describes itself.
    """
    contents = [read_file(file) for file in files]
    if external is not None and not any(map(is_external, contents)):
        raise UsageError(
            f"{files[0]}: a checkpoint of this toolkit has its own architecture and preprocessing; "
            "leave --arch and --preprocessing out"
        )
    models: list[Classifier] = []
    matches: list[ClassMatch] = []
    notes: list[str] = []
    for file, content in zip(files, contents, strict=True):
        model, match, lines = classifier_for(dataset, content, file, external, weights, classes_by)
        if models and model.spec.crop != models[0].spec.crop:
            raise UsageError(
                f"{file} needs crops of {model.spec.crop} px, but {files[0]} of {models[0].spec.crop} px: "
                "the checkpoints of an ensemble must have the same crop"
            )
        models.append(model)
        matches.append(match)
        notes += lines
    lacking = {label for match in matches for label, output in enumerate(match.outputs) if output is None}
    matches = [match.without(lacking) for match in matches]
    for model, match in zip(models, matches, strict=True):
        over_classes(model, match, dataset.manifest.classes)
    return models, matches, notes


def classifier_for(
    dataset: Dataset,
    content: Any,
    file: Path,
    external: ExternalWeights | None,
    weights: WeightsChoice | None,
    classes_by: ClassesBy,
) -> tuple[Classifier, ClassMatch, list[str]]:
    """Build the classifier of one checkpoint, and check that it fits a dataset.

    Args:
        dataset: Dataset to evaluate on.
        content: Content of the checkpoint file; see `checkpoint_file.read_file`.
        file: The file, for messages.
        external: Its architecture and preprocessing, if another program wrote it.
        weights: Which weights to take; see `load_models`.
        classes_by: How classes are matched; see `load_models`.

    Returns:
        The classifier, on the CPU, with its own classes; which of them are the dataset's; notes for the user.

    Raises:
        UsageError: The checkpoint does not have these `weights`, or does not fit the dataset.
    """
    if is_external(content):
        classifier, notes = load_external(content, file, external, dataset.classes, weights, classes_by)
        if list(classifier.spec.classes) == dataset.classes:
            classes_by = "order"  # they were assumed to be its classes
    else:
        classifier, notes = checkpoint.classifier_of(checkpoint.check_format(content, file), file, weights)
    match = match_classes(file, classifier.spec, dataset, classes_by)
    _refuse_other_size(file, classifier.spec, dataset)
    return classifier, match, notes


def normalized(weights: Sequence[float] | None, count: int) -> list[float]:
    """Normalize the weights of `count` checkpoints to a sum of 1; None gives equal weights.

    Raises:
        UsageError: Their number is not `count`, one is negative or not finite, or all are zero.
    """
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise UsageError(
            f"{len(given)} weights for {count} checkpoint{'' if count == 1 else 's'}; give one for each"
        )
    for weight in given:
        check_number("ensemble_weights", weight)
    if not all(0 <= weight < math.inf for weight in given) or sum(given) <= 0:
        shown = ",".join(f"{weight:g}" for weight in given)
        raise UsageError(f"weights {shown}: each must be 0 or more, and one above 0")
    return [weight / sum(given) for weight in given]
