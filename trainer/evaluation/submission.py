"""Predictions as the ImageNet challenge of 2012 took them: five ILSVRC2012_IDs a line, a line an image.

The devkit's readme.txt, "Submission format", says of task 1: one line for each image, in the alphabetical
order of the file names; each holds the ILSVRC2012_IDs (1 to 1000) of the predicted categories, sorted by
confidence in descending order, at most five. Its evaluation/demo.val.pred.txt is such a file for the
validation images, and evaluation/eval_flat.m reads one.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes
from trainer.evaluation.predictions import Predictions

_KEY = re.compile(r"ILSVRC2012_(?:val|test)_([0-9]{8})")


def check_submission(keys: Sequence[str], class_ids: Sequence[str], ids: Mapping[str, int]) -> None:
    """Refuse what cannot be a submission, before anything is measured for it.

    Args:
        keys: of the split's samples, in any order.
        class_ids: of the data, in label order.
        ids: WNID → ILSVRC2012_ID, of a devkit (`pipeline.sources.labelers.devkit.read_ids`).

    Raises:
        UsageError: images that are not the challenge's, one that is missing among them, or a class
            that the devkit lacks.
    """
    unknown = [class_id for class_id in class_ids if class_id not in ids]
    if unknown:
        more = f" and {len(unknown) - 1:,} more" if unknown[1:] else ""
        raise UsageError(
            f"a submission needs the devkit's classes, but it has no {unknown[0]}{more}; the data are of "
            "other classes"
        )
    for place, key in enumerate(sorted(keys), 1):
        match = _KEY.fullmatch(key)
        if match is None:
            raise UsageError(
                f"a submission has a line for each of the challenge's images, but {key} is none of them "
                "(ILSVRC2012_val_00000001, …)"
            )
        if int(match[1]) != place:
            raise UsageError(
                f"a submission has a line for each image in order, but image {place:,} is not in the "
                f"data, whose next is {key}; prepare the whole validation set"
            )


def write_submission(
    path: Path, predictions: Predictions, class_ids: Sequence[str], ids: Mapping[str, int]
) -> None:
    """Write a submission, atomically; for arguments see `check_submission`.

    Raises:
        UsageError: as `check_submission`.
        RunError: it cannot be written.
    """
    check_submission(predictions.keys, class_ids, ids)
    numbers = [ids[class_id] for class_id in class_ids]
    rows = sorted(zip(predictions.keys, predictions.classes.tolist(), strict=True))
    lines = [" ".join(str(numbers[guess]) for guess in guesses) for _, guesses in rows]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
