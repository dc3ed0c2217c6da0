"""Open the containers of a source: decompress tars on the fly, and turn errors into one line."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from pipeline.errors import DamageError, RunError, UsageError
from pipeline.sources.base import Container
from pipeline.storage.base import Store


def _zstandard(file: BinaryIO) -> BinaryIO:
    import zstandard  # type: ignore[import-not-found]  # optional

    return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file))


_DECOMPRESS: dict[tuple[str, ...], Callable[[BinaryIO], Any]] = {
    (".tar.gz", ".tgz"): lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    (".tar.bz2", ".tbz2", ".tbz"): bz2.BZ2File,
    (".tar.xz", ".txz"): lzma.LZMAFile,
    (".tar.zst", ".tzst"): _zstandard,
}
PACKED = tuple(suffix for suffixes in _DECOMPRESS for suffix in suffixes)
"""Suffixes of compressed tars, in lower case."""
TARS = (".tar", *PACKED)
"""Suffixes of tars, in lower case."""
ZIP = ".zip"
PARQUET = ".parquet"
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def reading(url: str, kind: str, *damage: type[Exception]) -> Iterator[None]:
    """Context manager that turns errors of reading a file into a UsageError or RunError of one line.

    Args:
        url: Path or URL of the file, for messages.
        kind: Expected kind of the file, such as "Parquet file", for messages.
        damage: Exception types that mean the file is damaged. An OSError without an errno means so too.

    Raises:
        UsageError: The file is missing.
        DamageError: It is damaged.
        RunError: It cannot be read.
    """
    expected: tuple[type[Exception], ...] = (*damage, OSError)
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{url}: it does not exist any more; restore it") from error
    except expected as error:
        if isinstance(error, OSError) and error.errno:
            raise RunError(f"cannot read {url}: {error.strerror}; run the same command again") from error
        text = " ".join(str(error).split())
        raise DamageError(f"{url}: no complete {kind} ({text}); download it again") from error


@contextmanager
def unpacked(store: Store, container: Container) -> Iterator[BinaryIO]:
    """Open a tar for reading; a compressed one is decompressed on the fly.

    Raises:
        UsageError: The tar is missing or damaged, or its compression needs a package that is not installed.
        RunError: The tar cannot be read.
    """
    path = container.path.lower()
    with ExitStack() as stack:
        stack.enter_context(reading(store.url_of(container.path), "compressed tar", *_DAMAGE))
        file = stack.enter_context(store.open(container.path))
        decompress = next((how for suffixes, how in _DECOMPRESS.items() if path.endswith(suffixes)), None)
        try:
            yield stack.enter_context(decompress(file)) if decompress else file
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{store.url_of(container.path)}: reading it needs the package {error.name}, which is not "
                f"installed; pip install {error.name}"
            ) from error
