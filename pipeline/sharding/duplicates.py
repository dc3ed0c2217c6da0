"""The same image more than once, by the hash of its file: in two splits, or with two labels.

A task hashes the file of each image while it reads it, and stores the digests of its shard's images beside
its result, in `.work/results/NAME.digests`; at the end they are compared. With `--drop-duplicates` a first
pass hashes the files of the held-out splits, "val" and "test", into `.work/held_out/NAME.digests`, and the
tasks of training shards leave out what is among them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Duplicates
from pipeline.dataset.report import ReportRow
from pipeline.dataset.work import WORK
from pipeline.errors import RunError
from pipeline.sharding.plan import Plan, ShardPlan, ShardSummary, read_shard_plan
from pipeline.sharding.reader import display
from pipeline.storage.base import ByteRange, Store

# Half of a SHA-256: among ten million images, two have the same by chance with a probability of 1e-25.
# Current CPUs have instructions for SHA-256, with which it takes half the time of BLAKE2b.
_BYTES = 16
NO_DIGEST = bytes(_BYTES)
"""Stands for an image that could not be read, or is not in the shard."""
Digests = NDArray[np.uint64]
"""uint64 (images, 2): the digests of the images of shards, in the order of their plans."""

_HELD_OUT = f"{WORK}/held_out"
# Labels of one image that its row of report.csv names.
_MOST_NAMED = 5


def digest_of(data: bytes) -> bytes:
    """Return the digest, 16 bytes, of a file's bytes."""
    return hashlib.sha256(data).digest()[:_BYTES]


def held_out_shards(plan: Plan) -> list[ShardSummary]:
    """Return the shards of "val" and "test", which training images are compared with, if there are any."""
    shards = [shard for shard in plan.shards if shard.split != "train"]
    return shards if len(shards) < len(plan.shards) else []


def store_held_out(out: Store, name: str, digests: Iterable[bytes]) -> None:
    """Store the digests of a held-out shard's files, in the order of its plan."""
    out.write(_held_out_file(name), b"".join(digests))


def unhashed(out: Store, shards: Sequence[ShardSummary]) -> list[ShardSummary]:
    """Return the held-out shards whose digests are not stored, or that had unreadable files."""
    there = out.names(_HELD_OUT)
    stored = [shard for shard in shards if _held_out_file(shard.name).rpartition("/")[2] in there]
    read = _read(out, [_held_out_file(shard.name) for shard in stored], stored)
    whole = {shard.name for shard, digests in zip(stored, read, strict=True) if digests.any(axis=1).all()}
    return [shard for shard in shards if shard.name not in whole]


class HeldOut:
    """Digests of the files of a plan's held-out splits, with which training images are compared.

    Args:
        out: Folder of the dataset.
        plan: Plan of the job; the first pass has hashed its held-out shards.

    Attributes:
        checksum: SHA-256 (hex) of all digests. Training shards that were made with others are out of date.

    Raises:
        RunError: Digests are missing or damaged.
    """

    def __init__(self, out: Store, plan: Plan) -> None:
        self._out, self._plan = out, plan
        self._shards = held_out_shards(plan)
        files = [_held_out_file(shard.name) for shard in self._shards]
        data = [digests.tobytes() for digests in _read(out, files, self._shards)]
        self.checksum = hashlib.sha256(b"".join(data)).hexdigest()
        self._places = {
            part[at : at + _BYTES]: (number, at // _BYTES)
            for number, part in enumerate(data)
            for at in range(0, len(part), _BYTES)
        }
        self._places.pop(NO_DIGEST, None)

    def find(self, digest: bytes) -> str:
        """Return the path of a held-out image with these bytes, "" if there is none."""
        if digest not in self._places:
            return ""
        number, row = self._places[digest]
        shard = read_shard_plan(self._out, self._shards[number].name)
        return display(self._plan.containers, shard.samples[row])


class _Copy(NamedTuple):
    """One of several images with the same bytes: the number of the bytes' group, and where it is."""

    group: int
    split: str
    path: str
    label: int


def find_duplicates(out: Store, plan: Plan, files: Sequence[str]) -> tuple[Duplicates, list[ReportRow]]:
    """Compare the digests of all images of a dataset.

    Memory: some 50 bytes an image, and the paths of those that are there more than once.

    Args:
        out: Folder of the dataset.
        plan: Plan of the job, all of whose shards are finished.
        files: File with the digests of each of its shards.

    Returns:
        The counts but for the images dropped, and the rows for report.csv.

    Raises:
        RunError: Digests are missing or damaged.
    """
    digests = np.concatenate(list(_read(out, files, plan.shards)))
    copies = sorted(_copies(out, plan, *_same(digests)))
    in_train = {shard.split: 0 for shard in held_out_shards(plan)}
    rows: list[ReportRow] = []
    two_labels = 0
    for _, group in groupby(copies, attrgetter("group")):
        same = list(group)
        trained = next((copy for copy in same if copy.split == "train"), None)
        for copy in same:
            if trained and copy.split != "train":
                in_train[copy.split] += 1
                reason = f"a {copy.split} image with the bytes of the training image {trained.path}"
                rows.append(ReportRow(copy.path, reason, "kept"))
        labeled = {copy.label: copy for copy in reversed(same)}
        if len(labeled) > 1:
            two_labels += 1
            first = same[0]
            others = [f"{plan.classes[c.label][0]} as {c.path}" for c in same if labeled[c.label] is c][1:]
            shown = ", ".join(others[:_MOST_NAMED]) + (", …" if others[_MOST_NAMED:] else "")
            reason = f"labeled {plan.classes[first.label][0]} here and, with the same bytes, {shown}"
            rows.append(ReportRow(first.path, reason, "kept"))
    return Duplicates(in_train=in_train, two_labels=two_labels), rows


def _read(out: Store, files: Sequence[str], shards: Sequence[ShardSummary]) -> Iterator[Digests]:
    """Yield the digests in the file of each shard.

    Raises:
        RunError: A file is missing or damaged.
    """
    for file, shard, data in zip(
        files, shards, out.read_many([ByteRange(file) for file in files]), strict=True
    ):
        if isinstance(data, OSError) or len(data) != shard.samples * _BYTES:
            raise RunError(
                f"{out.url_of(file)}: missing or damaged; remove the unfinished output and start again"
            )
        yield np.frombuffer(data, np.uint64).reshape(-1, 2)


def _same(digests: Digests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the images that are there more than once, and the number of their group."""
    order = np.lexsort(digests.T)
    order = order[digests[order].any(axis=1)]
    ordered = digests[order]
    new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    alone = new & np.append(new[1:], True)
    return order[~alone], np.cumsum(new)[~alone]


def _copies(out: Store, plan: Plan, images: NDArray[np.int64], groups: NDArray[np.int64]) -> list[_Copy]:
    """Look up images, given by their positions in the plan, in the plans of their shards."""
    starts = np.cumsum([0, *(shard.samples for shard in plan.shards)])
    found: list[_Copy] = []
    shard, number = ShardPlan("", "", ()), -1
    for at in np.argsort(images):
        of = int(np.searchsorted(starts, images[at], "right")) - 1
        if of != number:
            shard, number = read_shard_plan(out, plan.shards[of].name), of
        sample = shard.samples[int(images[at] - starts[of])]
        path = display(plan.containers, sample)
        found.append(_Copy(int(groups[at]), shard.split, path, sample.label))
    return found


def _held_out_file(name: str) -> str:
    return f"{_HELD_OUT}/{name.rpartition('/')[2]}.digests"
