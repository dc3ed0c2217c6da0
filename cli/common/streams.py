"""Standard output and error of the commands: a lost reader, a full disk or few characters stop no work."""

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import click

from pipeline.errors import RunError

# What our own texts have and Latin-1 or ASCII lacks; each is one character, so that columns stay aligned.
_SPELLED = {"–": "-", "−": "-", "×": "x", "…": "~", "→": ">", "“": '"', "”": '"'}
_WRITES = "alexnet writes files"


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Error handler of encoding: replace characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_SPELLED.get(letter, "?") for letter in letters), error.end


codecs.register_error("alexnet.spell", _spell)


class SafeStream:
    """A text stream that never raises: what cannot be written is dropped.

    Characters that the stream's encoding lacks are replaced. After the first error, the descriptor leads to
    the null device, so that nothing fails later either, such as the flush when Python exits.

    Attributes:
        error: The first error of writing, None so far.
    """

    buffer = None  # with it, click would write UTF-8 to terminals of ASCII

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str | bytes) -> int:
        """Write a text, or as much of it as can be; click gives a shell's completions as bytes."""
        text = text.decode() if isinstance(text, bytes) else text
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._try(self._stream.write, text.encode(encoding, "alexnet.spell").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        if self.error is not None:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.error = error
            try:
                descriptor = self._stream.fileno()
            except (OSError, AttributeError):
                return
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), descriptor)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make stdout and stderr of this process a `SafeStream` each within the block, where they are not yet."""
    if isinstance(sys.stdout, SafeStream):
        yield
        return
    before = sys.stdout, sys.stderr
    # Python sets None for a descriptor that the process was started without.
    safe = [SafeStream(stream or Path(os.devnull).open("w")) for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = cast(list[TextIO], safe)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = before


def check_printed() -> None:
    """Check that what this process printed has arrived, or that its reader went away.

    Raises:
        RunError: Standard output cannot be written, as on a full disk.
    """
    if (error := _error()) is not None and not reader_gone():
        raise RunError(
            f"standard output cannot be written: {error.strerror or error}; what was to be printed is lost, "
            "files are complete"
        )


def reader_gone() -> bool:
    """Return whether the reader of standard output, such as `head` or a terminal, went away."""
    return (error := _error()) is not None and error.errno in (errno.EPIPE, errno.EIO)


def _error() -> OSError | None:
    sys.stdout.flush()
    return getattr(sys.stdout, "error", None)


def writes_files() -> None:
    """Declare that the current command writes files.

    If the reader of its output goes away, it exits with 0 in the end. Commands that only print exit with 141,
    as shells report of programs that a closed pipe ended.
    """
    click.get_current_context().meta[_WRITES] = True


def only_prints() -> bool:
    """Return whether the current command has not called `writes_files`."""
    return _WRITES not in click.get_current_context().meta
