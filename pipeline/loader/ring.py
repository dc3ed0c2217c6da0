"""Buffers for batches, used again once nobody holds the batch that was in them."""

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Ring:
    """Gives out views of buffers of one shape and type; a buffer whose view is gone is given out again.

    A tensor that `torch.from_numpy` makes of a view keeps it alive, and so does any part of that tensor. So a
    batch stays valid for as long as its consumer keeps it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: "np.dtype[Any]", *, pinned: bool) -> None:
        """Note what to allocate; nothing is allocated yet.

        Args:
            shape: Shape of each buffer.
            dtype: Its type.
            pinned: Whether to allocate page-locked memory, from which copies to a GPU are fast.
        """
        self._shape, self._dtype, self._pinned = shape, dtype, pinned
        self._buffers: list[tuple[NDArray[Any], weakref.ref[NDArray[Any]]]] = []

    def take(self) -> NDArray[Any]:
        """Return a view of a buffer that nobody uses; its content is arbitrary."""
        for number, (buffer, given) in enumerate(self._buffers):
            if given() is None:
                view = buffer[...]
                self._buffers[number] = buffer, weakref.ref(view)
                return view
        buffer = self._allocate()
        view = buffer[...]
        self._buffers.append((buffer, weakref.ref(view)))
        return view

    def _allocate(self) -> NDArray[Any]:
        if not self._pinned:
            return np.empty(self._shape, self._dtype)
        sample: Tensor = torch.from_numpy(np.empty(0, self._dtype))
        found: NDArray[Any] = torch.empty(self._shape, dtype=sample.dtype, pin_memory=True).numpy()
        return found
