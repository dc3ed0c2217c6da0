"""DALI index of a tar: offset, size and name of each sample's image and label."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.dataset.manifest import Shard
from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange, Store

INDEX_VERSION = "v1.2"


def index_path(tar: Path) -> Path:
    """Return the path of a tar's DALI index: the same path with the suffix .idx."""
    return tar.with_suffix(".idx")


def index_name(tar: str) -> str:
    """Return the name of a tar's DALI index below the dataset's root: `train/a.tar` → `train/a.idx`."""
    return PurePosixPath(tar).with_suffix(".idx").as_posix()


def to_index(lines: Sequence[str]) -> bytes:
    """Encode a DALI index (v1.2).

    Args:
        lines: one line per sample, a sequence of `EXT OFFSET SIZE NAME` for its members; OFFSET is that of
            the member's data in the tar, in bytes.
    """
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode()


def read_index(path: Path) -> list[dict[str, tuple[int, int, str]]]:
    """Read a DALI index.

    Returns:
        For each sample, extension → (offset in bytes, size in bytes, member name).

    Raises:
        UsageError: the file is missing, truncated, or not an index of version v1.2.
    """
    try:
        return _parse_index(path.read_text())
    except (OSError, ValueError) as error:
        raise _incomplete(str(path), error) from error


def keys_in(store: Store, shard: Shard) -> list[str]:
    """Read the keys of a shard's samples from its index, in order. They are the keys in the loader's batches.

    Raises:
        UsageError: the index is missing, truncated, or not of version v1.2.
    """
    name = index_name(shard.name)
    try:
        samples = _parse_index(store.read(ByteRange(name)).decode())
        return [sample["jpg"][2].removesuffix(".jpg") for sample in samples]
    except (OSError, ValueError, KeyError) as error:
        raise _incomplete(store.url_of(name), error) from error


def _incomplete(url: str, error: Exception) -> UsageError:
    return UsageError(
        f"{url}: not a complete {INDEX_VERSION} index ({error}); `alexnet-prep verify` on the dataset "
        "lists all such files; prepare the dataset again"
    )


def label_in(data: bytes) -> int:
    """Parse the label in the bytes of an index's `cls` entry: their last digits, as the DALI graph does."""
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
