"""ILSVRC 2012's development kit (devkit): classes from MATLAB's `meta.mat`, and the validation labels."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.sources.labelers.wnids import WNID
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

DEVKIT = "ILSVRC2012_devkit_t12"
"""Name of the devkit of tasks 1 and 2: a folder of this name, or its archive with `.tar.gz`."""
META = "data/meta.mat"
"""Path of the table of classes in the devkit's folder."""
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
"""Path of the validation labels in the devkit's folder: line i, from 1 on, holds the ILSVRC2012_ID of
`ILSVRC2012_val_{i:08d}`."""

# MD5 of the archive that the ImageNet project distributes; torchvision's datasets/imagenet.py has it too.
_AGAIN = "download ILSVRC2012_devkit_t12.tar.gz again (its MD5 is fa75699e90414af021442c21a62c3abf)"
# Limit of the decompressed archive, in bytes: it is held in memory, and zeros compress a thousandfold.
_LARGEST = 2**27
# 64 MiB hold 50,000 labels with a kilobyte each; a larger file is something else.
_LARGEST_FILE = 2**26


@dataclass(frozen=True)
class Devkit:
    """Contents of a development kit.

    Attributes:
        place: Path or URL of its archive or folder.
        names: WNID of each class → its words, such as "tench, Tinca tinca".
        labels: Stem of each validation image → WNID.
    """

    place: str
    names: dict[str, str]
    labels: dict[str, str]


def read_devkit(store: Store, name: str) -> Devkit:
    """Read a development kit.

    Args:
        store: The source.
        name: Path, below the source's root, of the devkit's archive (`….tar.gz`) or of its `data/meta.mat`.

    Raises:
        UsageError: A file is missing or damaged, or a label is not the ID of a class.
    """
    folder = name.removesuffix(META)
    url = store.url_of(folder.rstrip("/"))
    if folder == name:
        meta, truth = _unpack(read_small(store, name), url)
    elif store.is_file(folder + TRUTH):
        meta, truth = read_small(store, name), read_small(store, folder + TRUTH)
    else:
        raise UsageError(f"{url}: has no {TRUTH}; {_AGAIN}")
    classes = read_classes(meta, url)
    labels: dict[str, str] = {}
    for number, line in enumerate(truth.splitlines(), 1):
        found = classes.get(int(line)) if line.strip().isdigit() and len(line) < 9 else None
        if found is None:
            shown = line[:20].decode("ascii", "backslashreplace")
            raise UsageError(
                f"{url}: line {number:,} of {TRUTH} is {shown!r}, which is no class's ID in {META}; {_AGAIN}"
            )
        labels[f"ILSVRC2012_val_{number:08d}"] = found[0]
    return Devkit(url, dict(classes.values()), labels)


def read_ids(path: Path) -> dict[str, int]:
    """Return WNID → ILSVRC2012_ID of a devkit's classes.

    Args:
        path: Path of `meta.mat`, of the devkit's archive, or of a folder that holds either.

    Raises:
        UsageError: The path is none of these, or the file is damaged.
    """
    inside = (META, "meta.mat", f"{DEVKIT}/{META}", f"{DEVKIT}.tar.gz")
    file = next((path / name for name in inside if (path / name).is_file()), path)
    if not file.is_file():
        raise UsageError(
            f"{path}: no development kit; name {DEVKIT}.tar.gz, the folder that it unpacks to, or its {META}"
        )
    data = read_small(open_store(file.parent), file.name)
    meta = data if file.suffix == ".mat" else _unpack(data, str(file))[0]
    return {wnid: number for number, (wnid, _) in read_classes(meta, str(file)).items()}


def read_small(store: Store, name: str) -> bytes:
    """Return the bytes of a label file.

    Raises:
        UsageError: The file cannot be read, or is larger than 64 MiB, which no label file is.
    """
    try:
        size = store.size(name)
        if size > _LARGEST_FILE:
            raise UsageError(
                f"{store.url_of(name)}: {size:,} bytes are too many for a label file; download it again"
            )
        return store.read(ByteRange(name))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot read {store.url_of(name)}: {reason}; check its permissions") from error


def read_text(store: Store, name: str) -> str:
    """Return the text of a label file.

    Raises:
        UsageError: The file cannot be read, or is not UTF-8.
    """
    try:
        return read_small(store, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{store.url_of(name)}: not UTF-8 text (byte {error.start:,}); download it again"
        ) from error


def _unpack(archive: bytes, url: str) -> tuple[bytes, bytes]:
    """Return `meta.mat` and the labels from a devkit's archive, which a browser may have decompressed."""
    found: dict[str, bytes] = {}
    try:
        if archive.startswith(b"\x1f\x8b"):
            # Read to the end, where gzip's checksum is.
            archive = gzip.GzipFile(fileobj=io.BytesIO(archive)).read(_LARGEST)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                wanted = next((w for w in (META, TRUTH) if f"/{member.name}".endswith(f"/{w}")), None)
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if wanted and file:
                    found[wanted] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, IndexError) as error:
        raise UsageError(f"{url}: cannot be unpacked: {error}; {_AGAIN}") from error
    for wanted in (META, TRUTH):
        if wanted not in found:
            raise UsageError(f"{url}: has no {wanted}; {_AGAIN}")
    return found[META], found[TRUTH]


def read_classes(data: bytes, url: str) -> dict[int, tuple[str, str]]:
    """Return ILSVRC2012_ID → (WNID, words) of the classes, which are the synsets without children.

    SciPy reads the file in a child process, because a damaged file can crash it.

    Args:
        data: Bytes of `meta.mat`. Its variable `synsets` has the fields that the devkit's readme.txt lists:
            ILSVRC2012_ID, WNID, words, gloss, num_children, children, wordnet_height, num_train_images.
        url: Path or URL of the devkit, for messages.

    Raises:
        UsageError: The bytes are damaged, or not such a file.
    """
    # -P: nothing is imported from the current folder.
    command = [sys.executable, "-P", "-m", "pipeline.sources.labelers.devkit"]
    reader = subprocess.run(command, input=data, capture_output=True, check=False)
    classes: dict[int, tuple[str, str]] = {}
    try:
        if reader.returncode < 0:
            raise ValueError(f"reading it crashed SciPy (signal {-reader.returncode})")
        if reader.returncode:
            lines = reader.stderr.decode(errors="replace").split("\n")
            raise ValueError(next((line for line in reversed(lines) if line.strip()), "unreadable")[:200])
        for number, wnid, words, children in json.loads(reader.stdout):
            if children == 0:
                if not WNID.fullmatch(wnid):
                    raise ValueError(f"{wnid[:20]!r} is no WNID")
                if number in classes:
                    raise ValueError(f"ILSVRC2012_ID {number} occurs twice")
                classes[number] = wnid, words
    except ValueError as error:
        raise UsageError(f"{url}: {META} is damaged: {error}; {_AGAIN}") from error
    return classes


def _rows(data: bytes) -> list[tuple[int, str, str, int]]:
    """Return ILSVRC2012_ID, WNID, words and number of children of each synset; runs in a child process."""
    import numpy as np
    from scipy.io import loadmat

    table: Any = loadmat(io.BytesIO(data), variable_names=["synsets"], squeeze_me=True)["synsets"]
    return [
        (int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]), int(row["num_children"]))
        for row in np.atleast_1d(table)
    ]


if __name__ == "__main__":
    try:
        found = json.dumps(_rows(sys.stdin.buffer.read()))
    # On a damaged file SciPy raises almost anything: ValueError, TypeError, KeyError, zlib.error and more.
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
    print(found)
