"""Write shards that are identical byte for byte, and check that a dataset's shards are all there."""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.dataset.index import index_name, index_path, to_index
from pipeline.dataset.manifest import Shard
from pipeline.dataset.tar import BLOCK, Member
from pipeline.errors import UsageError
from pipeline.storage.atomic import atomic_write, sha256_of, write_bytes
from pipeline.storage.base import Store

_SIZE_AT = slice(124, 135)
_CHECKSUM_AT = slice(148, 156)
# The header of a regular file with mode 0644 and without name, size, time or owner.
_EMPTY_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)


class ShardWriter:
    """Appends samples as KEY.jpg, KEY.cls to a USTAR archive and builds its index.

    Headers contain no time, user or machine, so equal samples give equal bytes.

    Args:
        file: file to write to, at its start.
        label_width: number of digits of the labels.
    """

    def __init__(self, file: BinaryIO, label_width: int) -> None:
        self._file = file
        self._label_width = label_width
        self._members: list[list[tuple[str, Member]]] = []

    @property
    def samples(self) -> int:
        """Number of samples added so far."""
        return len(self._members)

    def add(self, key: str, jpeg: bytes, label: int) -> None:
        """Append one sample; the label is stored as zero-padded ASCII digits.

        Raises:
            ValueError: the key or the JPEG is too long for a USTAR header (100 bytes with suffix; 8 GiB).
        """
        members = (("jpg", jpeg), ("cls", f"{label:0{self._label_width}d}".encode()))
        self._members.append([(ext, self._write(f"{key}.{ext}", data)) for ext, data in members])

    def close(self) -> bytes:
        """Write the archive's end mark and return its DALI index (v1.2); the file stays open."""
        self._file.write(bytes(2 * BLOCK))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        return to_index(self._members)

    def _write(self, name: str, data: bytes) -> Member:
        offset = self._file.tell() + BLOCK
        self._file.write(b"".join((_header(name, len(data)), data, bytes(-len(data) % BLOCK))))
        return Member(name, offset, len(data))


def _header(name: str, size: int) -> bytes:
    """Return the USTAR header of a regular file with mode 0644 and without time or owner.

    Building it with `tarfile` takes a hundred times as long as writing the data after it.

    Raises:
        ValueError: the name or the size is too long for its field.
    """
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > tarfile.LENGTH_NAME or len(digits) > 11:
        raise ValueError(f"{name!r} of {size} bytes does not fit into a USTAR header")
    header = bytearray(_EMPTY_HEADER)
    header[: len(encoded)] = encoded
    header[_SIZE_AT] = digits
    header[_CHECKSUM_AT] = b" " * 8  # the checksum counts its own field as blank
    header[_CHECKSUM_AT] = b"%06o\0 " % sum(header)
    return bytes(header)


@contextmanager
def write_shard(path: Path, label_width: int) -> Iterator[ShardWriter]:
    """Context manager: write a tar at `path`, then its index beside it, each atomically.

    If no sample was added, no file is left, because readers see a phantom sample in an empty tar.

    Args:
        path: path of the tar.
        label_width: number of digits of the labels.

    Raises:
        RunError: a file cannot be written.
    """
    with atomic_write(path) as file:
        writer = ShardWriter(file, label_width)
        yield writer
        index = writer.close()
    if writer.samples:
        write_bytes(index_path(path), index)
    else:
        path.unlink()
        index_path(path).unlink(missing_ok=True)  # left by an earlier run that had samples


def describe(root: Path, path: Path, samples: int) -> Shard:
    """Return the manifest's entry for a finished tar: its name below `root`, size and checksum."""
    return Shard(path.relative_to(root).as_posix(), samples, path.stat().st_size, sha256_of(path))


def check_sizes(store: Store, shards: Sequence[Shard]) -> None:
    """Check that every shard has its tar, of the size in the manifest, and its index.

    Raises:
        UsageError: a file is missing or a tar has another size; names the first such file.
    """
    names = [name for shard in shards for name in (shard.name, index_name(shard.name))]
    if root := store.local:  # other files are not examined
        found = {name: (root / name).stat().st_size for name in names if (root / name).is_file()}
    else:
        found = dict(store.walk()[0])
    if missing := next((name for name in names if name not in found), None):
        raise UsageError(
            f"{store.url_of(missing)}: missing, but the manifest lists it; `alexnet-prep verify {store}` "
            "lists all missing files; prepare the dataset again in a new folder"
        )
    for shard in shards:
        if found[shard.name] != shard.bytes:
            raise UsageError(
                f"{store.url_of(shard.name)}: {found[shard.name]:,} bytes, but the manifest says "
                f"{shard.bytes:,}; it was cut or changed after it was written: `alexnet-prep verify {store}` "
                "lists all such shards; prepare the dataset again in a new folder"
            )
