"""WebDataset tars and their DALI indexes, written in one pass and byte for byte repeatable."""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.errors import UsageError
from pipeline.storage.atomic import atomic_write, sha256_of, write_bytes
from pipeline.storage.base import Span, Store

INDEX_VERSION = "v1.2"


def index_path(tar: Path) -> Path:
    """Where a tar's DALI index lies: beside it, with the suffix .idx."""
    return tar.with_suffix(".idx")


def index_name(tar: str) -> str:
    """The same of names below a dataset's root: `train/a.tar` → `train/a.idx`."""
    return PurePosixPath(tar).with_suffix(".idx").as_posix()


@dataclass(frozen=True)
class Shard:
    """A finished tar: its name below the dataset's root, samples, size in bytes and SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardWriter:
    """Appends samples as KEY.jpg, KEY.cls to a USTAR archive and notes each member for the index.

    Headers hold nothing of the clock, the user or the machine, so that equal samples give equal bytes.
    """

    def __init__(self, file: BinaryIO, label_width: int) -> None:
        self._file = file
        self._label_width = label_width
        self._lines: list[str] = []

    @property
    def samples(self) -> int:
        """Samples added so far."""
        return len(self._lines)

    def add(self, key: str, jpeg: bytes, label: int) -> None:
        """Append one sample; `label` is stored as zero-padded ASCII."""
        members = (("jpg", jpeg), ("cls", f"{label:0{self._label_width}d}".encode()))
        self._lines.append(" ".join(self._member(key, ext, data) for ext, data in members))

    def close(self) -> None:
        """Write the archive's end mark; the file stays open."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))

    def index(self) -> bytes:
        """The DALI index (v1.2) of what was added: `EXT OFFSET SIZE NAME` for each member."""
        return to_index(self._lines)

    def _member(self, key: str, ext: str, data: bytes) -> str:
        name, offset = f"{key}.{ext}", self._file.tell() + tarfile.BLOCKSIZE
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        self._file.write(b"".join((_header(name, len(data)), data, padding)))
        return f"{ext} {offset} {len(data)} {name}"


def _header(name: str, size: int) -> bytes:
    """The USTAR header of a regular file that anyone may read, without a time or an owner.

    tarfile's own takes a hundred times as long as writing what follows it.

    Raises:
        ValueError: the name is too long for its field, or the file for its.
    """
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > tarfile.LENGTH_NAME or len(digits) > 11:
        raise ValueError(f"{name!r} of {size} bytes does not fit into a USTAR header")
    header = bytearray(_EMPTY_HEADER)
    header[: len(encoded)] = encoded
    header[_SIZE_AT] = digits
    header[_CHECKSUM_AT] = b"%06o\0 " % sum(header)
    return bytes(header)


def _empty_header() -> bytes:
    """A header of no name, with the checksum's field blank, as it is when it is summed."""
    info = tarfile.TarInfo("")
    info.mode = 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_CHECKSUM_AT] = b" " * 8
    return bytes(header)


_SIZE_AT = slice(124, 135)
_CHECKSUM_AT = slice(148, 156)
_EMPTY_HEADER = _empty_header()


def to_index(lines: Sequence[str]) -> bytes:
    """A DALI index of samples' lines: pairs of `EXT OFFSET SIZE NAME`, where OFFSET is a tar block's."""
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode()


@contextmanager
def write_shard(path: Path, label_width: int) -> Iterator[ShardWriter]:
    """Write a tar at `path` and its index beside it, each atomically, the index last.

    A shard that got no sample leaves no file: readers take an empty tar for a phantom sample.
    """
    with atomic_write(path) as file:
        writer = ShardWriter(file, label_width)
        yield writer
        writer.close()
    if writer.samples:
        write_bytes(index_path(path), writer.index())
    else:
        path.unlink()
        index_path(path).unlink(missing_ok=True)  # of an earlier try that had samples


def describe(root: Path, path: Path, samples: int) -> Shard:
    """Checksum a finished tar."""
    return Shard(path.relative_to(root).as_posix(), samples, path.stat().st_size, sha256_of(path))


def check_sizes(store: Store, shards: Sequence[Shard]) -> None:
    """Refuse shards of which a file or an index is missing or a size is not the manifest's.

    Raises:
        UsageError: names the first such file, both sizes and what to do.
    """
    found = _sizes_here(store.local, shards) if store.local else dict(store.walk()[0])
    for shard in shards:
        for name in (shard.name, index_name(shard.name)):
            if name not in found:
                raise UsageError(
                    f"{store.place(name)}: missing, but the manifest lists it; `alexnet-prep verify {store}` "
                    "names all that is; prepare the dataset again in a new folder"
                )
        if found[shard.name] != shard.bytes:
            raise UsageError(
                f"{store.place(shard.name)}: {found[shard.name]:,} bytes, but the manifest says "
                f"{shard.bytes:,}; it was cut or changed after it was written: `alexnet-prep verify {store}` "
                "names all such shards; prepare the dataset again in a new folder"
            )


def _sizes_here(root: Path, shards: Sequence[Shard]) -> dict[str, int]:
    """Sizes of the shards' files that are there; what else lies in the folder is not looked at."""
    names = [name for shard in shards for name in (shard.name, index_name(shard.name))]
    return {name: (root / name).stat().st_size for name in names if (root / name).is_file()}


def read_index(path: Path) -> list[dict[str, tuple[int, int, str]]]:
    """Parse a DALI index: per sample, extension → (offset, size, member name).

    Raises:
        UsageError: not an index of version v1.2, or cut short.
    """
    try:
        return _parse_index(path.read_text())
    except (OSError, ValueError) as error:
        raise _incomplete(str(path), error) from error


def keys_in(store: Store, shard: Shard) -> list[str]:
    """The keys of a shard's samples in order, from its index, as the loader's batches name them.

    Raises:
        UsageError: as `read_index`.
    """
    name = index_name(shard.name)
    try:
        samples = _parse_index(store.read(Span(name)).decode())
        return [sample["jpg"][2].removesuffix(".jpg") for sample in samples]
    except (OSError, ValueError, KeyError) as error:
        raise _incomplete(store.place(name), error) from error


def _incomplete(place: str, error: Exception) -> UsageError:
    return UsageError(
        f"{place}: not a complete {INDEX_VERSION} index ({error}); `alexnet-prep verify` on the dataset "
        "names all such files; prepare the dataset again"
    )


def label_in(data: bytes) -> int:
    """The label that indexed bytes hold: the digits that end them, as the DALI graph reads them."""
    return int(data[len(data.rstrip(b"0123456789")) :])


def _parse_index(text: str) -> list[dict[str, tuple[int, int, str]]]:
    head, *lines = text.split("\n")
    if not text.endswith("\n") or head != f"{INDEX_VERSION} {len(lines) - 1}":
        raise ValueError(f"it starts {head[:20]!r} and has {len(lines)} more lines")
    return [
        {
            ext: (int(offset), int(size), name)
            for ext, offset, size, name in zip(*[iter(line.split())] * 4, strict=True)
        }
        for line in lines[:-1]
    ]
