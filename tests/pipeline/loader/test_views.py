"""Color noise and the checks of crops."""

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics
from pipeline.loader.views import check_crop, color_noise

# Eigenvectors (columns) and standard deviations from the code released with the paper.
V = np.array([[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]])
SIGMA = np.array([19.72, 37.09, 121.78])

STATISTICS = Statistics(
    pixels=1,
    mean=(123.0, 117.0, 104.0),
    covariance=tuple(map(tuple, V @ np.diag(SIGMA**2) @ V.T)),
    eigenvalues=tuple(SIGMA[::-1] ** 2),
    eigenvectors=tuple(map(tuple, V.T[::-1])),
    measured_on="source",
)


@pytest.mark.parametrize(
    ("kind", "divisor", "deviations"),
    [
        ("source", 1.1, 0.1 * SIGMA),  # a tenth of the images' deviation
        ("paper", 1.0, 0.1 * (SIGMA / 255) ** 2 * 255),  # by the eigenvalues of pixels scaled to 0..1
    ],
)
def test_noise_has_the_covariance_of_its_kind(kind, divisor, deviations):
    noise = color_noise(kind, STATISTICS)
    assert noise.divisor == divisor
    # cov(mixing z) = V diag(deviations²) Vᵀ, whatever the order and signs of the directions
    expected = V @ np.diag(deviations**2) @ V.T
    np.testing.assert_allclose(noise.mixing @ noise.mixing.T, expected, rtol=1e-3, atol=0.05)


def test_no_noise():
    assert color_noise("none", STATISTICS) is None


@pytest.mark.parametrize(("crop", "size"), [(225, 224), (0, 224), (-1, 224)])
def test_impossible_crops_are_refused(crop, size):
    with pytest.raises(UsageError, match=f"crop of {crop} px"):
        check_crop(crop, size)


def test_a_crop_may_fill_the_image():
    check_crop(256, 256)
