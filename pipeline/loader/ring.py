"""Buffers for batches, used again once nobody holds the batch that was in them."""

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Slot(NamedTuple):
    """A buffer of a ring.

    Attributes:
        number: Its number, from 0 on.
        images: A view of it.
    """

    number: int
    images: NDArray[Any]


class Layout(NamedTuple):
    """Shape and type of each buffer."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    @property
    def stride(self) -> int:
        """Bytes from one buffer to the next in a file, which can be mapped from there on."""
        size, unit = int(np.prod(self.shape)) * self.dtype.itemsize, mmap.ALLOCATIONGRANULARITY
        return max(-(-size // unit), 1) * unit

    def map(self, file: int, number: int) -> NDArray[Any]:
        """Map a buffer of a file into memory, which other processes may do too.

        Args:
            file: Descriptor of the file.
            number: Number of the buffer.
        """
        memory = mmap.mmap(file, self.stride, offset=number * self.stride)
        return np.ndarray(self.shape, self.dtype, memory)


class Ring:
    """Gives out views of buffers; a buffer whose view is gone is given out again.

    A tensor that `torch.from_numpy` makes of a view keeps it alive, and so does any part of that tensor. So a
    batch stays valid for as long as its consumer keeps it.

    Attributes:
        layout: Shape and type of each buffer.
        file: The file that holds the buffers, if other processes share them.
    """

    def __init__(self, layout: Layout, *, gpu: "torch.device | None" = None, shared: bool = False) -> None:
        """Note what to allocate.

        Args:
            layout: Shape and type of each buffer.
            gpu: CUDA device that batches are copied to, for which the memory is page-locked.
            shared: Whether other processes fill the buffers.
        """
        self.layout, self._gpu = layout, gpu
        self.file = _memory_file() if shared else None
        if self.file is not None:
            weakref.finalize(self, self.file.close)
        self._buffers: list[tuple[NDArray[Any], weakref.ref[NDArray[Any]]]] = []

    def take(self) -> Slot:
        """Return a buffer that nobody uses; its content is arbitrary."""
        free = (number for number, (_, given) in enumerate(self._buffers) if given() is None)
        number = next(free, len(self._buffers))
        if number == len(self._buffers):
            buffer = self._allocate()
            self._buffers.append((buffer, weakref.ref(buffer)))
        buffer, _ = self._buffers[number]
        view = buffer[...]
        self._buffers[number] = buffer, weakref.ref(view)
        return Slot(number, view)

    def close(self) -> None:
        """Close the file; buffers stay valid for as long as they are held."""
        if self.file is not None:
            self.file.close()

    def _allocate(self) -> NDArray[Any]:
        if self.file is None:
            buffer = np.empty(*self.layout)
        else:
            self.file.truncate((len(self._buffers) + 1) * self.layout.stride)
            buffer = self.layout.map(self.file.fileno(), len(self._buffers))
        if self._gpu is not None:
            _page_lock(buffer, self._gpu)
        return buffer


def _memory_file() -> BinaryIO:
    """Return a new file in memory, which needs no /dev/shm; on macOS a temporary one."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("alexnet-batches"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def _page_lock(buffer: NDArray[Any], gpu: "torch.device") -> None:
    """Register memory with CUDA, for as long as the buffer lives. Without success, copies are slower."""
    import torch

    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = buffer.ctypes.data
    with torch.cuda.device(gpu):
        if int(runtime.cudaHostRegister(address, buffer.nbytes, 0)) == 0:
            weakref.finalize(buffer, _unlock, runtime, address)
        else:
            with suppress(RuntimeError):  # the error stays until the next kernel reports it
                torch.zeros(1, device=gpu)


def _unlock(runtime: Any, address: int) -> None:
    with suppress(Exception):  # the driver may be gone at the interpreter's end
        runtime.cudaHostUnregister(address)
