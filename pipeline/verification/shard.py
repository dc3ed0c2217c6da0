"""Proving one shard: its tar, its index and its pictures, against what the manifest says of them."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from pipeline.dataset.shards import INDEX_VERSION, Shard, read_index
from pipeline.dataset.tar import Member, scan
from pipeline.errors import UsageError
from pipeline.executors.local import count_picture
from pipeline.storage.atomic import sha256_of
from pipeline.storage.base import Span, Store
from pipeline.verification.findings import Check, Findings, Rules, shown

_BLOCK = 512
# Of a USTAR header: the name, the type flag, magic and version; and the latter two of a plain file.
_NAME, _KIND, _MAGIC = slice(0, 100), slice(156, 157), slice(257, 265)
_PLAIN = (b"0", b"ustar\x0000")
# One dot, between key and extension, and nothing that a path or an index's line is split at.
_MEMBER = re.compile(r"[!-.0-~]+\.(jpg|cls)")


def check_shard(shard: Shard, rules: Rules) -> Findings:
    """Read a shard's files again and compare everything with the manifest.

    Damage is told and not raised, so that one shard's does not hide another's.

    Raises:
        UsageError, RunError: a bucket refuses or cannot be reached.
    """
    check = Check(shard, rules)
    index = None
    with check.reading(check.index_name):
        index = rules.store.read(Span(check.index_name))
    with check.reading(shard.name), rules.store.fetched(shard.name) as path:
        _check_bytes(path, check)
        with path.open("rb") as file:
            if not rules.adopted:
                _check_written(file, index, check)
            elif index is not None:
                _check_indexed(file, check)
    return check.findings()


def key_at(store: Store, tar: str, header: int) -> str:
    """Read the key of the sample whose first header is at an offset of a tar."""
    block = store.read(Span(tar, header, _BLOCK))
    return block[_NAME].partition(b".")[0].decode("ascii", "backslashreplace")


def _check_bytes(tar: Path, check: Check) -> None:
    """Compare the tar's size and checksum."""
    shard, checksum = check.shard, sha256_of(tar)
    check.size = tar.stat().st_size
    if check.size != shard.bytes:
        check.fault(f"{check.size:,} bytes, but the manifest says {shard.bytes:,}")
    if checksum != shard.sha256:
        check.fault(f"its SHA-256 is {checksum}, but the manifest says {shard.sha256}")


def _check_written(file: BinaryIO, index: bytes | None, check: Check) -> None:
    """Check every sample of a tar that the shard writer made, then the index that the headers give."""
    lines: list[str] = []
    try:
        for key, members in groupby(_plain(file, check), lambda member: member.name.partition(".")[0]):
            lines.append(_check_sample(file, key, list(members), check))
            count_picture()
    except UsageError as error:
        check.fault(f"{error} ({check.samples:,} samples before that were read)")
        return
    check.count()
    expected = [f"{INDEX_VERSION} {len(lines)}", *lines, ""]
    if index is not None and index != "\n".join(expected).encode("utf-8", "surrogateescape"):
        check.fault(_first_difference(index, expected), check.index_name)


def _plain(file: BinaryIO, check: Check) -> Iterator[Member]:
    """The tar's files; a header of another kind than a plain USTAR file's is a fault."""
    at = 0
    for member in scan(file, "not a whole tar", remedy="prepare the dataset again in a new folder"):
        file.seek(member.offset - _BLOCK)
        header = file.read(_BLOCK)
        if member.offset - _BLOCK != at:
            check.member_fault(member.name, f"behind a PAX, GNU or folder header at offset {at:,}")
        elif (header[_KIND], header[_MAGIC]) != _PLAIN:
            check.member_fault(member.name, f"its header at offset {at:,} is not USTAR's for a plain file")
        yield member
        at = member.offset + -(-member.size // _BLOCK) * _BLOCK


def _check_sample(file: BinaryIO, key: str, members: Sequence[Member], check: Check) -> str:
    """Check the members of one key; return their line of the index."""
    check.samples += 1
    hashed = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    check.keys.append(int.from_bytes(hashed, "little"))
    check.headers.append(members[0].offset - _BLOCK)
    found = [member.name for member in members]
    if found != [f"{key}.jpg", f"{key}.cls"] or not all(map(_MEMBER.fullmatch, found)):
        check.member_fault(key, f"its members are {', '.join(map(shown, found))}; expected KEY.jpg, KEY.cls")
    for name, offset, size in members:
        file.seek(offset)
        data = file.read(size)
        if name.endswith(".jpg"):
            check.picture(name, data)
        elif name.endswith(".cls"):
            if len(data) == check.rules.label_width and data.isdigit():
                check.label(name, data)
            else:
                label, width = shown(data.decode("latin-1")), check.rules.label_width
                check.member_fault(name, f"the label is '{label}'; expected {width} digits")
    return " ".join(f"{m.name.partition('.')[2]} {m.offset} {m.size} {m.name}" for m in members)


def _check_indexed(file: BinaryIO, check: Check) -> None:
    """Check every sample that the index of an adopted tar lists."""
    try:
        with check.rules.store.fetched(check.index_name) as path:
            samples = read_index(path)
    except UsageError as error:
        check.fault(f"not a complete {INDEX_VERSION} index: {error.__cause__}", check.index_name)
        return
    for sample in samples:
        _check_entries(file, sample, check)
        count_picture()
    check.count()


def _check_entries(file: BinaryIO, sample: dict[str, tuple[int, int, str]], check: Check) -> None:
    check.samples += 1
    name = next(iter(sample.values()))[2] if sample else f"sample {check.samples}"
    if sorted(sample) != ["cls", "jpg"]:
        check.member_fault(name, f"the index has {', '.join(sample) or 'nothing'} of it; expected jpg, cls")
    for extension, (offset, size, member) in sample.items():
        file.seek(max(offset, 0))
        data = file.read(max(size, 0))
        if offset < 0 or size <= 0 or len(data) != size:
            check.member_fault(member, f"the index has {size} bytes at {offset:,}, which are not in the tar")
        elif extension == "jpg":
            check.foreign_picture(member, data)
        elif extension == "cls":
            digits = re.search(rb"[0-9]{1,%d}\Z" % check.rules.label_width, data)
            if digits:
                check.label(member, digits[0])
            else:
                check.member_fault(member, "no digits of a label end the bytes that the index points to")


def _first_difference(found: bytes, expected: list[str]) -> str:
    """Where an index departs from the one that the tar gives."""
    lines = found.decode("latin-1").split("\n")
    pairs = enumerate(zip(lines, expected, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(lines), len(expected)))
    here, there = (f"'{shown(t[number])}'" if number < len(t) else "missing" for t in (lines, expected))
    return f"not the tar's index: line {number + 1} is {here}; the tar gives {there}"
