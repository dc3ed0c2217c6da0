"""Settings that OpenCV and Pillow have for a whole process, changed only while our own functions run.

The settings of the caller, such as a notebook, come back at the end; where threads overlap, when the last of
them ends.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

import cv2
from PIL import Image

F = TypeVar("F", bound=Callable[..., Any])


class Settings(ContextDecorator):
    """Our settings of a library, as a context manager and decorator.

    Args:
        change: Makes the settings, and returns a function that restores those that it found.
        of_thread: Whether they are settings of a thread, not of the process.
    """

    def __init__(self, change: Callable[[], Callable[[], None]], *, of_thread: bool = False) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._state: Any = threading.local() if of_thread else SimpleNamespace()

    def __enter__(self) -> None:
        with self._lock:
            users = getattr(self._state, "users", 0)
            if users == 0:
                self._state.restore = self._change()
            self._state.users = users + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._state.users -= 1
            if self._state.users == 0:
                self._state.restore()


def _one_thread() -> Callable[[], None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    return lambda: cv2.setNumThreads(threads)


def _no_ipp() -> Callable[[], None]:
    # Intel's IPP chooses kernels by CPU, and the same image would differ by a gray level from machine to
    # machine. OpenCV keeps this setting for each thread.
    ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    return lambda: cv2.ipp.setUseIPP(ipp)


_SILENT = logging.NullHandler()


def _change_pillow() -> Callable[[], None]:
    logger, limit = logging.getLogger("PIL"), Image.MAX_IMAGE_PIXELS
    # Pillow's limit would override a larger `max_megapixels`; `refuse_bomb` replaces it.
    Image.MAX_IMAGE_PIXELS = None
    # Pillow logs some of the errors that it also raises; without a handler they would reach the terminal.
    logger.addHandler(_SILENT)

    def restore() -> None:
        Image.MAX_IMAGE_PIXELS = limit
        logger.removeHandler(_SILENT)

    return restore


pillow = Settings(_change_pillow)
"""No limit of pixels, and no log on the terminal."""
_one_opencv_thread = Settings(_one_thread)
without_ipp = Settings(_no_ipp, of_thread=True)
"""OpenCV gives the same bits on every machine."""


def opencv(function: F) -> F:
    """Decorate a function that calls OpenCV: it runs on one thread, and without IPP."""
    return _one_opencv_thread(without_ipp(function))
