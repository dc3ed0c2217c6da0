"""ILSVRC 2012's development kit: classes from MATLAB's `meta.mat`, and the validation ground truth."""

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

DEVKIT = "ILSVRC2012_devkit_t12"
"""The development kit of tasks 1 and 2: a folder of this name, or its archive, `.tar.gz`."""


META = "data/meta.mat"
"""The devkit's table of classes, which begins with this path in its folder."""


WNID = re.compile(r"n[0-9]{8}")


# 64 MiB hold 50,000 labels with a kilobyte each; a larger file is something else.
_LARGEST_FILE = 2**26
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
"""The devkit's labels: line i holds the ILSVRC2012_ID of `ILSVRC2012_val_{i:08d}`."""
# MD5 of the archive as the ImageNet project hands it out; torchvision's datasets/imagenet.py has it too.
_AGAIN = "download ILSVRC2012_devkit_t12.tar.gz again (its MD5 is fa75699e90414af021442c21a62c3abf)"
# It is held in memory, and zeros pack a thousandfold.
_LARGEST = 2**27


@dataclass(frozen=True)
class Devkit:
    """A development kit.

    Attributes:
        place: where it lies.
        names: WNID → the words of its class.
        labels: validation image (its file's stem) → WNID.
    """

    place: str
    names: dict[str, str]
    labels: dict[str, str]


def read_devkit(store: Store, name: str) -> Devkit:
    """Read the devkit whose archive (`….tar.gz`) or `data/meta.mat` has this name.

    Raises:
        UsageError: a damaged or missing part, or labels that are not among the classes.
    """
    folder = name.removesuffix(META)
    place = store.url_of(folder.rstrip("/"))
    if folder == name:
        meta, truth = _unpack(read_small(store, name), place)
    elif store.is_file(folder + TRUTH):
        meta, truth = read_small(store, name), read_small(store, folder + TRUTH)
    else:
        raise UsageError(f"{place}: has no {TRUTH}; {_AGAIN}")
    classes = _read_meta(meta, place)
    labels: dict[str, str] = {}
    for number, line in enumerate(truth.splitlines(), 1):
        found = classes.get(int(line)) if line.strip().isdigit() and len(line) < 9 else None
        if found is None:
            shown = line[:20].decode("ascii", "backslashreplace")
            raise UsageError(
                f"{place}: line {number:,} of {TRUTH} is {shown!r}, which is no class's ID in {META}; "
                f"{_AGAIN}"
            )
        labels[f"ILSVRC2012_val_{number:08d}"] = found[0]
    return Devkit(place, dict(classes.values()), labels)


def read_ids(path: Path) -> dict[str, int]:
    """WNID → ILSVRC2012_ID of a devkit's classes.

    Args:
        path: `meta.mat`, the devkit's archive, or a folder that holds either.

    Raises:
        UsageError: it is none of these, or damaged.
    """
    inside = (META, "meta.mat", f"{DEVKIT}/{META}", f"{DEVKIT}.tar.gz")
    file = next((path / name for name in inside if (path / name).is_file()), path)
    if not file.is_file():
        raise UsageError(
            f"{path}: no development kit; name {DEVKIT}.tar.gz, the folder that it unpacks to, or its {META}"
        )
    data = read_small(open_store(file.parent), file.name)
    meta = data if file.suffix == ".mat" else _unpack(data, str(file))[0]
    return {wnid: number for number, (wnid, _) in _read_meta(meta, str(file)).items()}


def read_small(store: Store, name: str) -> bytes:
    """A label file's bytes.

    Raises:
        UsageError: it cannot be read, or is far larger than any label file.
    """
    try:
        size = store.size(name)
        if size > _LARGEST_FILE:
            raise UsageError(f"{store.url_of(name)}: {size:,} bytes are too many; download it again")
        return store.read(ByteRange(name))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot read {store.url_of(name)}: {reason}; check its permissions") from error


def _unpack(archive: bytes, place: str) -> tuple[bytes, bytes]:
    """`meta.mat` and the ground truth of a devkit's archive; browsers may have undone the gzip."""
    found: dict[str, bytes] = {}
    try:
        if archive.startswith(b"\x1f\x8b"):
            # To its end, where gzip's checksum is.
            archive = gzip.GzipFile(fileobj=io.BytesIO(archive)).read(_LARGEST)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                wanted = next((w for w in (META, TRUTH) if f"/{member.name}".endswith(f"/{w}")), None)
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if wanted and file:
                    found[wanted] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, IndexError) as error:
        raise UsageError(f"{place}: cannot be unpacked: {error}; {_AGAIN}") from error
    for wanted in (META, TRUTH):
        if wanted not in found:
            raise UsageError(f"{place}: has no {wanted}; {_AGAIN}")
    return found[META], found[TRUTH]


def _read_meta(data: bytes, place: str) -> dict[int, tuple[str, str]]:
    """ILSVRC2012_ID → (WNID, words) of the classes, which are the synsets without children."""
    classes: dict[int, tuple[str, str]] = {}
    try:
        for synset in read_synsets(data):
            if synset.children == 0:
                if not WNID.fullmatch(synset.wnid):
                    raise ValueError(f"{synset.wnid[:20]!r} is no WNID")
                if synset.id in classes:
                    raise ValueError(f"ILSVRC2012_ID {synset.id} occurs twice")
                classes[synset.id] = synset.wnid, synset.words
    except ValueError as error:
        raise UsageError(f"{place}: {META} is damaged: {error}; {_AGAIN}") from error
    return classes


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
    command = [sys.executable, "-m", "pipeline.sources.labelers.devkit"]
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
