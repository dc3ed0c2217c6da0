"""Submission file of the ImageNet challenge 2012: one line per image with up to five ILSVRC2012_IDs.

The format of task 1 is in the devkit's readme.txt, "Submission format": one line per image, in alphabetical
order of the file names; each line holds the ILSVRC2012_IDs (1 to 1000) of the predicted categories, most
confident first, at most five. The devkit's evaluation/demo.val.pred.txt is an example for the validation
images, and its evaluation/eval_flat.m reads such a file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes
from trainer.evaluation.predictions import Predictions

_KEY = re.compile(r"ILSVRC2012_(?:val|test)_([0-9]{8})")


def check_submission(keys: Sequence[str], class_ids: Sequence[str], ids: Mapping[str, int]) -> None:
    """Check that a split can be submitted, before it is evaluated.

    Args:
        keys: Keys of the split's samples, in any order.
        class_ids: Class ids of the dataset, in label order.
        ids: WNID → ILSVRC2012_ID, from a devkit (`pipeline.sources.labelers.devkit.read_ids`).

    Raises:
        UsageError: an image is not one of the challenge's, an image of the challenge is missing, or the
            devkit lacks a class.
    """
    unknown = [class_id for class_id in class_ids if class_id not in ids]
    if unknown:
        more = f" and {len(unknown) - 1:,} more" if unknown[1:] else ""
        raise UsageError(
            f"a submission needs the devkit's classes, but it has no {unknown[0]}{more}; give data with the "
            "classes of ILSVRC 2012"
        )
    for number, key in enumerate(sorted(keys), 1):
        match = _KEY.fullmatch(key)
        if match is None:
            raise UsageError(
                f"a submission has a line for each of the challenge's images, but {key} is none of them; "
                "their keys are ILSVRC2012_val_00000001 and so on"
            )
        if int(match[1]) != number:
            raise UsageError(
                f"a submission has a line for each image, but image {number:,} is not in the data (its next "
                f"is {key}); prepare the whole validation set"
            )


def write_submission(
    path: Path, predictions: Predictions, class_ids: Sequence[str], ids: Mapping[str, int]
) -> None:
    """Write a submission file, atomically.

    Args:
        path: File to write.
        predictions: Predictions of the challenge's images.
        class_ids: Class ids of the network, in label order.
        ids: WNID → ILSVRC2012_ID, from a devkit.

    Raises:
        UsageError: `check_submission` refuses the predictions.
        RunError: the file cannot be written.
    """
    check_submission(predictions.keys, class_ids, ids)
    numbers = [ids[class_id] for class_id in class_ids]
    rows = sorted(zip(predictions.keys, predictions.classes.tolist(), strict=True))
    lines = [" ".join(str(numbers[label]) for label in classes) for _, classes in rows]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
