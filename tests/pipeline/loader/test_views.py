"""Color noise and the checks of crops."""

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics
from pipeline.loader.views import check_crop, color_noise

# Eigenvectors (columns) and standard deviations from the code released with the paper.
V = np.array([[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]])
SIGMA = np.array([19.72, 37.09, 121.78])


@pytest.fixture
def statistics():
    covariance = V @ np.diag(SIGMA**2) @ V.T
    return Statistics(
        pixels=1,
        mean=(123.0, 117.0, 104.0),
        covariance=tuple(map(tuple, covariance)),
        eigenvalues=tuple(SIGMA[::-1] ** 2),
        eigenvectors=tuple(map(tuple, V.T[::-1])),
        measured_on="source",
    )


def test_source_noise_has_a_tenth_of_the_images_deviation(statistics):
    noise = color_noise("source", statistics)
    assert noise.divisor == 1.1
    # cov(mixing z) = 0.1² V diag(σ²) Vᵀ, whatever the order and signs of the directions
    np.testing.assert_allclose(
        noise.mixing @ noise.mixing.T, 0.01 * V @ np.diag(SIGMA**2) @ V.T, rtol=1e-3, atol=0.05
    )


def test_paper_noise_is_scaled_by_eigenvalues_of_unit_pixels(statistics):
    noise = color_noise("paper", statistics)
    assert noise.divisor == 1.0
    unit = (SIGMA / 255) ** 2
    expected = 0.01 * V @ np.diag((unit * 255) ** 2) @ V.T
    np.testing.assert_allclose(noise.mixing @ noise.mixing.T, expected, rtol=1e-3, atol=0.05)
    # the first direction moves the image by 0.1 · 121.78² / 255 = 5.8 gray levels
    assert np.linalg.norm(noise.mixing[:, 0]) == pytest.approx(5.816, abs=0.01)


def test_no_noise(statistics):
    assert color_noise("none", statistics) is None


@pytest.mark.parametrize(("crop", "size"), [(225, 224), (0, 224), (-1, 224)])
def test_impossible_crops_are_refused(crop, size):
    with pytest.raises(UsageError, match=f"crop of {crop} px"):
        check_crop(crop, size)


def test_a_crop_may_fill_the_image():
    check_crop(256, 256)
