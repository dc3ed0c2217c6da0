"""An epoch's sums, kept on the device and read without making it wait."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed.env import World


@dataclass(frozen=True)
class Reading:
    """A meter's state at some update.

    Attributes:
        loss_sum, correct, images: of this process's batches in the epoch.
        loss: of the last batch.
        diverged: the first update of the run whose loss was not finite, or 0.
    """

    loss_sum: float
    correct: float
    images: float
    loss: float
    diverged: float


class Meter:
    """Adds up the batches of this process."""

    def __init__(self, world: World) -> None:
        self._state = torch.zeros(5, dtype=torch.float64, device=world.device)
        self._on_gpu = world.kind == "gpu"
        self._copies = [torch.zeros(5, dtype=torch.float64, pin_memory=self._on_gpu) for _ in range(2)]
        self._copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, correct: Tensor, images: int, step: int) -> None:
        """Take in a batch's mean loss and correct guesses, both scalars; `step` counts from 1."""
        loss = loss.to(torch.float64)
        state = self._state
        state[0] += loss * images
        state[1] += correct
        state[2] += images
        state[3] = loss
        state[4] = torch.where((state[4] == 0) & ~torch.isfinite(loss), float(step), state[4])

    def peek(self) -> Reading | None:
        """The state without waiting for it: on a GPU that of the call before, None at the first."""
        if not self._on_gpu:
            return self.read()
        found = None
        if self._copied is not None:
            self._copied.synchronize()  # long past: updates lie between two calls
            found = Reading(*self._copies[0].tolist())
        self._copies.reverse()
        self._copies[0].copy_(self._state, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return found

    def read(self) -> Reading:
        """The state as it is, once the device has come so far."""
        return Reading(*self._state.tolist())

    @property
    def sums(self) -> Tensor:
        """Loss, correct guesses and images: float64 (3,), a view."""
        return self._state[:3]

    def restart(self) -> None:
        """Begin another epoch."""
        self._state.zero_()
        self._copied = None
