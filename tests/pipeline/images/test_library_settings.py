"""Importing and using the package leaves the settings of OpenCV and Pillow as the caller has them."""

import logging
import threading

import cv2
import numpy as np
import pytest
from helpers.folders import encoded
from PIL import Image

from pipeline.images.codec import convert
from pipeline.images.library_settings import opencv, pillow
from pipeline.images.statistics import Moments


def settings():
    return cv2.getNumThreads(), cv2.ipp.useIPP(), Image.MAX_IMAGE_PIXELS, logging.getLogger("PIL").handlers[:]


@pytest.fixture
def callers(monkeypatch):
    """Settings of a caller that are not ours."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield settings()
    cv2.setNumThreads(before)


def test_work_leaves_the_callers_settings(callers):
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    for kind in ("JPEG", "PNG"):
        image = convert(encoded(noise, kind), 24, mode="square", quality=90, max_megapixels=1)
        moments = Moments.for_square(24)
        moments.add(image.pixels)
    assert settings() == callers


def test_settings_last_until_the_last_user_ends(callers):
    inside, leave, seen = threading.Event(), threading.Event(), []

    @opencv
    def work():
        seen.append(settings()[:2])
        inside.set()
        leave.wait(10)

    def other():
        with pillow:
            work()

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with pillow:
        opencv(lambda: seen.append(settings()[:2]))()
    assert (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS) == (1, None)
    leave.set()
    thread.join()
    assert settings() == callers
    assert seen == [(1, False)] * 2  # IPP is off in each thread
