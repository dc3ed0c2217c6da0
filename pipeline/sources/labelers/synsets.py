"""The classes in a devkit's `meta.mat`, read by SciPy in a process of its own.

SciPy's reader may take the process with it: of 3,000 files with one byte changed, SciPy 1.17.1 ended on 93
by a segmentation fault. Here that is a message like any other damage.
"""

import io
import json
import subprocess
import sys
from typing import Any, NamedTuple


class Synset(NamedTuple):
    """A row of the table: its ILSVRC2012_ID, WNID and words, and how many synsets lie below it."""

    id: int
    wnid: str
    words: str
    children: int


def read_synsets(data: bytes) -> list[Synset]:
    """Every row of `meta.mat`'s table, classes and the synsets above them.

    Args:
        data: the file. Its variable `synsets` has the fields that the devkit's readme.txt lists:
            ILSVRC2012_ID, WNID, words, gloss, num_children, children, wordnet_height, num_train_images.

    Raises:
        ValueError: it is damaged, or something else.
    """
    command = [sys.executable, "-m", "pipeline.sources.labelers.synsets"]
    reader = subprocess.run(command, input=data, capture_output=True, check=False)
    if reader.returncode < 0:
        raise ValueError(f"reading it crashed SciPy (signal {-reader.returncode})")
    if reader.returncode:
        lines = reader.stderr.decode(errors="replace").split("\n")
        raise ValueError(next((line for line in reversed(lines) if line.strip()), "unreadable")[:200])
    return [Synset(*row) for row in json.loads(reader.stdout)]


def _rows(data: bytes) -> list[Synset]:
    import numpy as np
    from scipy.io import loadmat

    table: Any = loadmat(io.BytesIO(data), variable_names=["synsets"], squeeze_me=True)["synsets"]
    return [
        Synset(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]), int(row["num_children"]))
        for row in np.atleast_1d(table)
    ]


if __name__ == "__main__":
    try:
        found = json.dumps(_rows(sys.stdin.buffer.read()))
    # SciPy raises whatever a damaged file leads it to: ValueError, TypeError, KeyError, zlib.error, more.
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
    print(found)
