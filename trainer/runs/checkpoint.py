"""Checkpoints: written atomically, checked on loading, and loaded without running code from them."""

import io
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline.arguments import checked
from pipeline.dataset.manifest import FILE_NAME as MANIFEST
from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import PARTIAL, atomic_write
from trainer.models.classifier import Classifier, Spec
from trainer.runs.checkpoint_file import read_file
from trainer.runs.state_dict import WeightsChoice

FORMAT_VERSION = 2
LAST = "last.pt"
BEST = "best.pt"
_STEP = "step-{:08d}.pt"


def save(path: Path, classifier: Classifier, **state: Any) -> None:
    """Write a checkpoint of a classifier and further state atomically.

    Args:
        path: File to write.
        classifier: Its spec, weights and mean image are stored.
        state: Further entries: tensors, numbers, strings, lists and dicts only.

    Raises:
        RunError: The disk is full or not writable.
    """
    write(path, content_of(classifier, **state))


def content_of(classifier: Classifier, **state: Any) -> dict[str, Any]:
    """Build a checkpoint's content: format version, spec, weights and `state`; tensors are not copied."""
    return {
        "format": FORMAT_VERSION,
        "spec": asdict(classifier.spec),
        "model": classifier.state_dict(),
        **state,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint's content atomically.

    Raises:
        RunError: The disk is full or not writable.
    """
    buffer = io.BytesIO()  # torch.save on a full disk raises an error that hides the cause
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def write_last(folder: Path, content: dict[str, Any], steps: int, keep: int) -> None:
    """Write a run's newest checkpoint as `last.pt`, and delete old ones.

    With `keep` above 1 the file is named after the step, `step-00001000.pt`, and `last.pt` is a hard link to
    it (a copy where the file system has no links). Both files are whole at any moment.

    Args:
        folder: The run's folder.
        content: See `content_of`.
        steps: Steps of the run so far.
        keep: Number of checkpoints to keep, this one included; older ones are deleted.

    Raises:
        RunError: The disk is full or not writable.
    """
    if keep == 1:
        write(folder / LAST, content)
    else:
        file = folder / _STEP.format(steps)
        write(file, content)
        _link(file, folder / LAST)
    for old in steps_of(folder)[keep if keep > 1 else 0 :]:
        with suppress(OSError):  # the new checkpoint is whole
            old.unlink(missing_ok=True)


def steps_of(folder: Path) -> list[Path]:
    """Return a run's checkpoints that are named after their steps, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _link(file: Path, name: Path) -> None:
    temporary = name.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{name.name}")
    try:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
        temporary.replace(name)
    except OSError as error:
        raise RunError(f"cannot write {name}: {error.strerror or error}; free space there") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: A file that `write` or, as .safetensors, `trainer.export` has written.

    Returns:
        Its content; see `content_of`.

    Raises:
        UsageError: The file is missing, or of another program or format version.
        DamagedError: The file cannot be read.
    """
    return check_format(read_file(path), path)


def check_format(content: Any, path: Path) -> dict[str, Any]:
    """Return a file's content if it is a checkpoint of this toolkit.

    Raises:
        UsageError: It is of another program or format version.
    """
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or version is None:
        raise UsageError(
            f"{path}: not a checkpoint of this toolkit, though torch can read it: it does not describe "
            "its network and preprocessing; evaluate it with `alexnet-eval --arch ... --preprocessing ...`"
        )
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path}: checkpoint format {version!r}, but this release reads {FORMAT_VERSION}; train again, "
            "or use the release that wrote it"
        )
    return content


def find(run_or_checkpoint: Path) -> Path:
    """Return a run folder's best checkpoint, else its last; a checkpoint's path is returned as it is.

    Raises:
        UsageError: The path does not exist, or the run has no checkpoints.
    """
    if run_or_checkpoint.is_dir():
        for name in (BEST, LAST):
            if (run_or_checkpoint / name).is_file():
                return run_or_checkpoint / name
        if (run_or_checkpoint / MANIFEST).is_file():
            raise UsageError(
                f"{run_or_checkpoint}: a dataset, where a run or checkpoint is expected; give it as --data "
                f"{run_or_checkpoint}"
            )
        raise UsageError(
            f"{run_or_checkpoint}: holds no checkpoint ({BEST} or {LAST}); has the run finished an epoch?"
        )
    if not run_or_checkpoint.is_file():
        raise UsageError(f"{run_or_checkpoint}: no such run or checkpoint")
    return run_or_checkpoint


@checked()
def classifier_of(
    content: dict[str, Any], path: Path, weights: WeightsChoice | None = None
) -> tuple[Classifier, list[str]]:
    """Build the classifier of a loaded checkpoint.

    Args:
        content: Content of the checkpoint; see `load`.
        path: Its file, for messages.
        weights: Which weights to take: the averaged (EMA) ones or the model's own; None for the averaged ones
            where the checkpoint has them.

    Returns:
        The classifier, and a note for the user where the checkpoint has both.

    Raises:
        UsageError: Its weights do not fit its spec, or it does not have the `weights` that are asked for.
    """
    classifier = Classifier(spec_of(content, path))
    averaged = (content.get("ema_weights") or {}).get("mean", {})
    if weights is not None and not {"averaged", "ema_weights"} & content.keys():  # an export
        raise UsageError(f"{path}: holds one set of weights, averaged or not; leave --weights out")
    if weights == "ema" and not (averaged or content.get("averaged")):
        raise UsageError(f"{path}: holds no averaged (EMA) weights; leave --weights ema out")
    if weights == "model" and content.get("averaged"):
        raise UsageError(
            f"{path}: holds averaged (EMA) weights only; give the run's {LAST} for the model's own"
        )
    try:
        classifier.load_state_dict(content["model"] | ({} if weights == "model" else averaged))
    except (KeyError, RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{path}: weights do not fit its own description ({first[:160]})") from error
    if not averaged:
        return classifier, []
    if weights == "model":
        return classifier, [f"{path}: takes the model's own weights"]
    return classifier, [f"{path}: takes the averaged (EMA) weights; --weights model takes the model's own"]


def spec_of(content: dict[str, Any], path: Path) -> Spec:
    """Return the spec of a loaded checkpoint's classifier.

    Raises:
        UsageError: The checkpoint has no spec, or none that can be read.
    """
    try:
        return msgspec.convert(content.get("spec"), Spec)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: does not describe its network ({error})") from error


def refuse_other_spec(content: dict[str, Any], wanted: Spec, path: Path) -> None:
    """Refuse a checkpoint of another architecture, class list or preprocessing.

    Args:
        content: Content of the checkpoint; see `load`.
        wanted: Spec of the classifier to continue with.
        path: File of the checkpoint, for error messages.

    Raises:
        UsageError: The specs differ; the message says in what.
    """
    found = spec_of(content, path)
    differences = []
    for name, value in asdict(wanted).items():
        if name == "names":  # class names change nothing, and older checkpoints have none
            continue
        was = getattr(found, name)
        if was != value:
            if name == "classes" and len(was) != len(value):
                differences.append(f"{len(was)} classes, here {len(value)}")
            elif name == "classes":
                first = next(i for i, pair in enumerate(zip(was, value, strict=True)) if len({*pair}) > 1)
                differences.append(f"class {first} is {was[first]!r}, here {value[first]!r}")
            else:
                differences.append(f"{name} {was}, here {value}")
    if differences:
        raise UsageError(f"{path}: belongs to another run: {'; '.join(differences)}")
