"""Cut, flip and normalize whole decoded squares on the device that they were copied to.

Crops and flips are those of `Cutter`, bit for bit. Windows that are scaled are interpolated linearly as
there, but for its fixed-point rounding: single gray levels differ.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop, H stored size.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.augmentation import Draws, divisors, shifts, windows
from pipeline.loader.backend import OutputSettings
from pipeline.loader.views import EvalView, TrainView, five_corners


def cuts_on_device(view: TrainView | EvalView, stored: ImageFormat) -> bool:
    """Whether `make_on_device` can make the batches of a view.

    Images must be squares of one size, to be stacked. Windows that shrink to half or less need an average of
    areas, and whole images that are resized Pillow's filter.
    """
    if isinstance(view, EvalView):
        return stored.mode == "square" and view.name != "full-resize"
    return stored.mode == "square" and (view.augmentation == "paper" or stored.size < 2 * view.crop)


def make_on_device(
    squares: Tensor,
    view: TrainView | EvalView,
    stored: ImageFormat,
    draws: Draws | None,
    output: OutputSettings,
) -> Tensor:
    """Make the images of a batch.

    Args:
        squares: uint8 (B, H, H, C), decoded images.
        view: Crops, flips and normalization, for which `cuts_on_device`.
        stored: Size and mode of the stored images.
        draws: Random numbers of the batch; None for an `EvalView`.
        output: Format of the images.

    Returns:
        float32 or float16 (B, C, S, S), or (B, V, C, S, S) for ten crops, on the device of `squares`.
    """

    def moved(array: NDArray[Any]) -> Tensor:
        # Without waiting for the kernels before it; CUDA stages what is not page-locked.
        return torch.from_numpy(array).to(squares.device, non_blocking=True)

    if isinstance(view, EvalView):
        images = _evaluation_crops(squares, view, stored.size).float()
    else:
        assert draws is not None
        found = windows(view, stored, draws, np.full((len(squares), 2), stored.size))
        images = _windows(squares, moved(found), moved(draws.flip), view)
        images -= moved(shifts(view, draws))[:, None, None, :]
        images /= moved(divisors(view))
    images = images.movedim(-1, -3)
    if not output.channels_last:
        images = images.contiguous()
    return images.half() if output.half else images


def _evaluation_crops(squares: Tensor, view: EvalView, size: int) -> Tensor:
    """Return uint8 (B, S, S, C), or (B, V, S, S, C)."""
    side, corners = view.crop, five_corners(size - view.crop)
    if view.name == "center":
        top, left = corners[-1]
        return squares[:, top : top + side, left : left + side]
    crops = [squares[:, top : top + side, left : left + side] for top, left in corners]
    return torch.stack([*crops, *(crop.flip(2) for crop in crops)], dim=1)


def _windows(squares: Tensor, found: Tensor, flips: Tensor, view: TrainView) -> Tensor:
    """Cut windows (B, 4), scale them to the crop's size and mirror some; return float32 (B, S, S, C)."""
    side = view.crop
    image = torch.arange(len(squares), device=squares.device)[:, None, None]
    step = torch.arange(side, device=squares.device)
    column = torch.where(flips[:, None], side - 1 - step, step)  # (B, S)
    top, left, height, width = found[:, :, None].unbind(1)  # (B, 1) each
    if view.augmentation == "paper":
        return squares[image, (top + step)[:, :, None], (left + column)[:, None, :]].float()
    above, below, down = _neighbors(step, top, height, side)
    before, after, right = _neighbors(column, left, width, side)

    def row(y: Tensor) -> Tensor:
        first, second = (squares[image, y[:, :, None], x[:, None, :]].float() for x in (before, after))
        return torch.lerp(first, second, right[:, None, :, None])

    return torch.lerp(row(above), row(below), down[:, :, None, None]).round_()


def _neighbors(step: Tensor, begin: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels between which each pixel of a crop lies on an axis, and how far from the first.

    Args:
        step: int64 (S,) or (B, S), pixels of the crop.
        begin: int64 (B, 1), first pixel of the window.
        length: int64 (B, 1), its length.
        side: Length of the crop.
    """
    place = ((step + 0.5) * (length / side) - 0.5).clamp(min=0)
    first = place.long().minimum(length - 1)
    second = (first + 1).minimum(length - 1)
    return begin + first, begin + second, place - first
