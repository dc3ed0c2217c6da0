"""DALI's index of a tar: where each sample's image and label lie."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.dataset.manifest import Shard
from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange, Store

INDEX_VERSION = "v1.2"


def index_path(tar: Path) -> Path:
    """Where a tar's DALI index lies: beside it, with the suffix .idx."""
    return tar.with_suffix(".idx")


def index_name(tar: str) -> str:
    """The same of names below a dataset's root: `train/a.tar` → `train/a.idx`."""
    return PurePosixPath(tar).with_suffix(".idx").as_posix()


def to_index(lines: Sequence[str]) -> bytes:
    """A DALI index of samples' lines: pairs of `EXT OFFSET SIZE NAME`, where OFFSET is a tar block's."""
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode()


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
        samples = _parse_index(store.read(ByteRange(name)).decode())
        return [sample["jpg"][2].removesuffix(".jpg") for sample in samples]
    except (OSError, ValueError, KeyError) as error:
        raise _incomplete(store.url_of(name), error) from error


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
