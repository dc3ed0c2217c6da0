"""PCA plot of a dataset's colors: how much they vary, and along which directions in RGB space."""

import numpy as np
from matplotlib.figure import FigureBase
from numpy.typing import NDArray

from pipeline.images.figure import BLUE
from pipeline.images.statistics import Statistics

# In standard deviations. On ImageNet, two along the first direction just reach black and white.
_REACH = 2.0
_STEPS = 256


def draw_pca_plot(figure: FigureBase, statistics: Statistics) -> None:
    """Draw the PCA plot of a dataset's pixels.

    Left: a bar for each of the three principal directions, with its standard deviation in gray levels and its
    share of the variance. Right: the colors along each direction, from the mean minus two standard deviations
    to the mean plus two, clipped to 0..255.

    Args:
        figure: Empty figure or part of one to draw into.
        statistics: RGB statistics of the dataset.
    """
    bars, *strips = figure.subplot_mosaic([["bars", k] for k in "123"], width_ratios=(2, 3)).values()
    deviations, values = statistics.deviations, statistics.eigenvalues
    total = max(sum(values), 1e-12)
    drawn = bars.bar(["1", "2", "3"], deviations, color=BLUE, width=0.55)
    bars.bar_label(drawn, [f"{d:.1f}\n{v / total:.1%}" for d, v in zip(deviations, values, strict=True)])
    bars.set_ylim(0, 1.45 * max(deviations[0], 1e-12))
    bars.set_yticks([])
    bars.spines["left"].set_visible(False)
    bars.set_title("PCA: deviation, share of variance\n")  # level with the title beside it
    for number, (strip, vector) in enumerate(zip(strips, statistics.eigenvectors, strict=True)):
        strip.imshow(colors_along(statistics, number, _STEPS)[None], aspect="auto")
        strip.set_axis_off()
        components = "   ".join(f"{name} {x:+.2f}" for name, x in zip("RGB", vector, strict=True))
        strip.set_title(f"{number + 1}:   {components}")
    strips[0].set_title("Color directions: mean ± 2 deviations\n" + strips[0].get_title(loc="left"))


def colors_along(statistics: Statistics, direction: int, steps: int) -> NDArray[np.uint8]:
    """Return colors from two standard deviations below the mean to two above, along an eigenvector.

    Args:
        statistics: RGB statistics of a dataset.
        direction: 0, 1 or 2; 0 is the direction of the largest variance.
        steps: number of colors.

    Returns:
        uint8 (steps, 3), clipped to 0..255.
    """
    reach = _REACH * statistics.deviations[direction]
    offsets = np.linspace(-reach, reach, steps)[:, None]
    colors: NDArray[np.float64] = np.asarray(statistics.mean) + offsets * statistics.eigenvectors[direction]
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8)
