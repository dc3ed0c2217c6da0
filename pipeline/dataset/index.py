"""DALI index of a tar: offset, size and name of each sample's image and label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.dataset.manifest import Shard
from pipeline.dataset.tar import Member
from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange, Store

INDEX_VERSION = "v1.2"


def index_path(tar: Path) -> Path:
    """Return the path of a tar's DALI index: the same path with the suffix .idx."""
    return tar.with_suffix(".idx")


def index_name(tar: str) -> str:
    """Return the name of a tar's DALI index below the dataset's root: `train/a.tar` → `train/a.idx`."""
    return PurePosixPath(tar).with_suffix(".idx").as_posix()


def to_index(samples: Sequence[Iterable[tuple[str, Member]]]) -> bytes:
    """Encode a DALI index (v1.2): a line for each sample, a sequence of `EXT OFFSET SIZE NAME`.

    Args:
        samples: for each sample, its members in the order of the tar, each with its extension.
    """
    lines = [" ".join(f"{ext} {m.offset} {m.size} {m.name}" for ext, m in sample) for sample in samples]
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ShardIndex:
    """Places of the samples of a shard in its tar.

    Attributes:
        keys: Key of each sample.
        image_offsets, image_sizes: Offset and size of each image in the tar, in bytes.
        label_offsets, label_sizes: Offset and size of each label.
    """

    keys: list[str]
    image_offsets: list[int]
    image_sizes: list[int]
    label_offsets: list[int]
    label_sizes: list[int]

    def __len__(self) -> int:
        return len(self.keys)


def parse_index(data: bytes) -> list[dict[str, Member]]:
    """Decode a DALI index; return extension → member of each sample.

    Raises:
        ValueError: the data is truncated, or not an index of version v1.2.
    """
    return [
        {
            ext: Member(name, int(offset), int(size))
            for ext, offset, size, name in zip(*[iter(row)] * 4, strict=True)
        }
        for row in _rows(data)
    ]


def _rows(data: bytes) -> list[list[str]]:
    head, *lines = data.decode().split("\n")
    if lines[-1:] != [""] or head != f"{INDEX_VERSION} {len(lines) - 1}":
        raise ValueError(f"it starts {head[:20]!r} and has {len(lines)} more lines")
    return [line.split() for line in lines[:-1]]


def _shard_index(data: bytes) -> ShardIndex:
    rows = _rows(data)
    for row in rows:
        if row[::4] == ["cls", "jpg"]:
            row[:] = row[4:] + row[:4]
        if len(row) != 8 or row[::4] != ["jpg", "cls"]:
            raise ValueError(f"a sample has {', '.join(row[::4])} instead of jpg, cls")
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * 8
    return ShardIndex(
        [name.removesuffix(".jpg") for name in columns[3]], *([*map(int, columns[k])] for k in (1, 2, 5, 6))
    )


def read_index(store: Store, shard: Shard) -> ShardIndex:
    """Read the index of a shard.

    Raises:
        UsageError: the index is missing, truncated or not of version v1.2, a sample in it is not an image and
            a label, or it lists another number of samples than the manifest.
    """
    url = store.url_of(index_name(shard.name))
    try:
        index = _shard_index(store.read(ByteRange(index_name(shard.name))))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{url}: not a complete {INDEX_VERSION} index ({error}); `alexnet-prep verify {store}` lists all "
            "such files; prepare the dataset again"
        ) from error
    if len(index) != shard.samples:
        raise UsageError(
            f"{url}: lists {len(index)} samples, but the manifest says {shard.samples}; "
            f"`alexnet-prep verify {store}` lists all differences"
        )
    return index


def label_digits(data: bytes, *, adopted: bool) -> bytes:
    """Return the digits of the label in the bytes of an index's `cls` entry.

    Args:
        data: The bytes.
        adopted: Whether another tool wrote the tar: text may precede the digits then.

    Raises:
        ValueError: There is no number, or it is not alone.
    """
    digits = data[len(data.rstrip(b"0123456789")) :] if adopted else data
    if not digits.isdigit():
        raise ValueError(f"its label is {data[-16:]!r}, not a number")
    return digits
