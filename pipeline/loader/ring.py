"""Buffers for batches, used again once nobody holds the batch that was in them."""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Ring:
    """Gives out arrays of one shape and type; those that nobody refers to any more are given out again.

    So a batch stays valid for as long as its consumer keeps its tensor, or any view of it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: "np.dtype[Any]", *, pinned: bool) -> None:
        """Note what to allocate; nothing is allocated yet.

        Args:
            shape: Shape of each array.
            dtype: Its type.
            pinned: Whether to allocate page-locked memory, from which copies to a GPU are fast.
        """
        self._shape, self._dtype, self._pinned = shape, dtype, pinned
        self._arrays: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """Return an array with arbitrary content. Tensors made of it by `torch.from_numpy` count as users."""
        for array in self._arrays:
            # Three references: the list's, the loop's and the call's own.
            if sys.getrefcount(array) == 3:
                return array
        array = self._allocate()
        self._arrays.append(array)
        return array

    def _allocate(self) -> NDArray[Any]:
        if not self._pinned:
            return np.empty(self._shape, self._dtype)
        sample: Tensor = torch.from_numpy(np.empty(0, self._dtype))
        found: NDArray[Any] = torch.empty(self._shape, dtype=sample.dtype, pin_memory=True).numpy()
        return found
