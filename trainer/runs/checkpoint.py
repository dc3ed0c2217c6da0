"""Checkpoints: whole files, loaded without running any code from them."""

import io
import json
import os
import secrets
import shutil
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import PARTIAL, atomic_write
from trainer.models.classifier import Classifier, Spec

FORMAT_VERSION = 2
LAST = "last.pt"
BEST = "best.pt"
_STEP = "step-{:08d}.pt"


class DamagedError(UsageError):
    """A file that is no whole checkpoint."""


def save(path: Path, classifier: Classifier, **state: Any) -> None:
    """Write the classifier, and what else `state` holds, atomically.

    Args:
        path: of the file.
        classifier: its spec, weights and mean image are stored.
        state: tensors, numbers, strings, lists and dicts only.

    Raises:
        RunError: the disk is full or not writable.
    """
    write(path, content_of(classifier, **state))


def content_of(classifier: Classifier, **state: Any) -> dict[str, Any]:
    """What a checkpoint of a classifier holds, besides `state`; tensors are not copied."""
    return {
        "format": FORMAT_VERSION,
        "spec": asdict(classifier.spec),
        "model": classifier.state_dict(),
        **state,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint's content atomically.

    Raises:
        RunError: the disk is full or not writable.
    """
    buffer = io.BytesIO()  # torch's own writing to a full disk raises an error without its cause
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def write_last(folder: Path, content: dict[str, Any], steps: int, keep: int) -> None:
    """Write a run's newest checkpoint as `last.pt`, and keep some before it.

    With `keep` above 1 the file is called after its updates, `step-00001000.pt`, and `last.pt` is another
    name of it (a copy where the file system has no links); both are whole at any moment.

    Args:
        folder: the run's.
        content: see `content_of`.
        steps: updates of the run so far.
        keep: checkpoints to keep, this one included; older ones are deleted.

    Raises:
        RunError: the disk is full or not writable.
    """
    if keep == 1:
        write(folder / LAST, content)
    else:
        file = folder / _STEP.format(steps)
        write(file, content)
        _name_too(file, folder / LAST)
    for old in steps_of(folder)[keep if keep > 1 else 0 :]:
        old.unlink(missing_ok=True)


def steps_of(folder: Path) -> list[Path]:
    """A run's checkpoints that are called after their updates, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _name_too(file: Path, name: Path) -> None:
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
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UsageError: missing, of another program or of another format version; `DamagedError` where it
            cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    if (rotten := _rotten(path)) is not None:
        raise DamagedError(f"{path}: not a readable checkpoint (bytes of {rotten} have changed)")
    try:
        content: dict[str, Any] = (
            _load_safetensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many kinds for damaged files
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if first.startswith("Weights only load failed"):  # torch goes on to say how to let it run code
            first = "no torch file, or one that holds more than tensors and plain values"
        raise DamagedError(f"{path}: not a readable checkpoint ({first[:160]})") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version is None:
        raise UsageError(
            f"{path}: not a checkpoint of this toolkit, though torch can read it: it says nothing of its "
            "network and preprocessing; `alexnet-eval --arch ... --preprocessing ...` measures such weights"
        )
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path}: checkpoint format {version!r}, but this release reads {FORMAT_VERSION}; train again, "
            "or use the release that wrote it"
        )
    return content


def _rotten(path: Path) -> str | None:
    """The part of a zip file, as torch writes it, that fails its checksum: torch.load compares none."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error):
        return None  # no zip file, or none that torch could read: it says more


def _load_safetensors(path: Path) -> dict[str, Any]:
    """What `trainer.export` wrote, as a checkpoint's content."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "spec" not in metadata or "format" not in metadata:
            return {}
        model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {"format": int(metadata["format"]), "spec": json.loads(metadata["spec"]), "model": model}


def find(run_or_checkpoint: Path) -> Path:
    """A checkpoint's path as it is; of a run directory its best checkpoint, else its last.

    Raises:
        UsageError: nothing there, or a run without checkpoints.
    """
    if run_or_checkpoint.is_dir():
        for name in (BEST, LAST):
            if (run_or_checkpoint / name).is_file():
                return run_or_checkpoint / name
        raise UsageError(
            f"{run_or_checkpoint}: holds no checkpoint ({BEST} or {LAST}); has the run finished an epoch?"
        )
    if not run_or_checkpoint.is_file():
        raise UsageError(f"{run_or_checkpoint}: no such run or checkpoint")
    return run_or_checkpoint


def classifier_of(content: dict[str, Any], path: Path) -> Classifier:
    """Rebuild the classifier that a loaded checkpoint holds, with its averaged weights if it has any.

    Raises:
        UsageError: its weights do not fit its own description.
    """
    classifier = Classifier(spec_of(content, path))
    try:
        averaged = (content.get("ema_weights") or {}).get("mean", {})
        classifier.load_state_dict(content["model"] | averaged)
    except (KeyError, RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{path}: weights do not fit the described network ({first[:160]})") from error
    return classifier


def spec_of(content: dict[str, Any], path: Path) -> Spec:
    """What a loaded checkpoint says of its classifier.

    Raises:
        UsageError: it says nothing, or nothing that can be read.
    """
    try:
        return msgspec.convert(content.get("spec"), Spec)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: does not describe its network ({error})") from error


def refuse_other_spec(content: dict[str, Any], wanted: Spec, path: Path) -> None:
    """Refuse a checkpoint of another architecture, class list or preprocessing.

    Raises:
        UsageError: says what differs.
    """
    found = spec_of(content, path)
    differences = []
    for name, value in asdict(wanted).items():
        if name == "names":  # what classes are called changes nothing, and older checkpoints do not say
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
