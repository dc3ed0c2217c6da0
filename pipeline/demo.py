"""Draw the demo source: folders of JPEGs of ten classes, which need no download.

Shape and texture tell the ten classes apart; color does not. Each class has a motif, which consists of a
*gauge*, a field whose sublevel sets are one outline at growing scale, and a *pattern*, a field that is
positive where there is ink. The outline grows until the ink covers a given share of the center square. That
share is drawn from the same distribution for all classes, so that neither the colors nor the area of the ink
reveal the class.

In this module a plane is a float32 array (height, width). Motifs are functions of rotated coordinates `u`,
`v` around the object's center, in units of the image's shorter side.
"""

import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.arguments import checked
from pipeline.errors import UsageError
from pipeline.images.library_settings import opencv
from pipeline.progress import OnProgress, no_progress
from pipeline.storage.atomic import refuse_dead_link

Plane = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Rng = np.random.Generator
GaugeAndPattern = tuple[Plane, Plane]

MIN_IMAGES = 40  # every class then has at least one image in each split
GRAY_SHARE = 0.02
CMYK_SHARE = 0.005
INK_SHARE = (0.13, 0.27)  # of the center square's area
TURN = 2 * math.pi

RECORD = ".demo.json"
"""Name of the file in the output folder that says what was drawn there."""


@dataclass(frozen=True)
class _Record:
    images: int
    seed: int


def _whole(gauge: Plane) -> GaugeAndPattern:
    """Motif whose whole outline is filled with ink."""
    return gauge, np.ones_like(gauge)


def _badge(u: Plane, v: Plane, rng: Rng, pattern: Plane) -> GaugeAndPattern:
    """Motif that shows a texture inside an outline between a disc and a square."""
    roundness = rng.uniform(0.35, 1.0)
    corner = np.maximum(np.abs(u), np.abs(v))
    return np.hypot(u, v) * roundness + corner * (1 - roundness), pattern


def _polygon(u: Plane, v: Plane, tips: int, waist: float) -> GaugeAndPattern:
    """Motif of a filled star whose inner corners lie at `waist` times the radius of its tips."""
    half = math.pi / tips
    normal = math.atan2(1 - waist * math.cos(half), waist * math.sin(half))
    from_tip = np.abs(np.mod(np.arctan2(v, u), 2 * half) - half)
    return _whole(np.hypot(u, v) * np.cos(from_tip - normal))


def _bands(phase: Plane, share: float) -> Plane:
    """Pattern of bands: ink covers `share` (0..1) of each period of `phase`, which is in radians."""
    return np.cos(phase) - math.cos(math.pi * share)


def _from_cell_center(x: Plane, period: float) -> Plane:
    """Distance of each coordinate from the center of its cell, in cells `period` wide."""
    return np.abs(np.mod(x, period) - period / 2)


def _bricks(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    height = rng.uniform(0.09, 0.13)
    width = height * rng.uniform(1.8, 2.4)
    mortar = height * rng.uniform(0.10, 0.16)
    shift = np.mod(np.floor(v / height), 2) * (width / 2)
    across = width / 2 - mortar - _from_cell_center(u + shift, width)
    along = height / 2 - mortar - _from_cell_center(v, height)
    return _badge(u, v, rng, np.minimum(across, along))


def _checks(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    frequency = math.pi / rng.uniform(0.075, 0.12)
    return _badge(u, v, rng, np.sin(u * frequency) * np.sin(v * frequency))


def _cross(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    slimness = 1 / rng.uniform(0.27, 0.40)
    a, b = np.abs(u), np.abs(v)
    return _whole(np.minimum(np.maximum(a, b * slimness), np.maximum(a * slimness, b)))


def _dots(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    period = rng.uniform(0.10, 0.14)
    distance = np.hypot(_from_cell_center(u, period), _from_cell_center(v, period))
    return _badge(u, v, rng, period * rng.uniform(0.34, 0.42) - distance)


def _ring(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    return _whole(np.abs(np.hypot(u, v) - rng.uniform(0.27, 0.38)))


def _spiral(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    radius, angle = np.hypot(u, v), np.arctan2(v, u) * int(rng.choice([-1, 1]))
    phase = radius * (TURN / rng.uniform(0.13, 0.19)) + angle
    return radius, _bands(phase, rng.uniform(0.42, 0.58))


def _star(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    return _polygon(u, v, tips=int(rng.integers(5, 8)), waist=rng.uniform(0.42, 0.55))


def _stripes(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    phase = u * (TURN / rng.uniform(0.10, 0.17))
    return _badge(u, v, rng, _bands(phase, rng.uniform(0.4, 0.6)))


def _triangle(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    return _polygon(u, v, tips=3, waist=rng.uniform(0.47, 0.52))


def _waves(u: Plane, v: Plane, rng: Rng) -> GaugeAndPattern:
    frequency = TURN / rng.uniform(0.11, 0.16)
    swing = np.sin(v * (frequency / rng.uniform(1.6, 2.2))) * rng.uniform(2.2, 3.1)
    return _badge(u, v, rng, _bands(u * frequency + swing, rng.uniform(0.4, 0.6)))


_MOTIFS = (_bricks, _checks, _cross, _dots, _ring, _spiral, _star, _stripes, _triangle, _waves)

CLASSES: tuple[str, ...] = tuple(motif.__name__.removeprefix("_") for motif in _MOTIFS)
"""Class names, sorted. A label is an index into this tuple."""


def _size(rng: Rng) -> tuple[int, int]:
    """Draw (height, width) in pixels: the shorter side is mostly 256 to 330, the aspect ratio up to 3:2."""
    low, high = (256, 330) if rng.random() < 0.8 else (160, 420)
    short = int(rng.integers(low, high + 1))
    long = int(short * rng.uniform(1.0, 1.5))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _coordinates(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    """Return the planes `u` and `v` of an object that lies near the image's center at a random angle."""
    side = min(height, width)
    x = np.arange(width, dtype=np.float32) / side - (width / side / 2 + rng.uniform(-0.05, 0.05))
    y = np.arange(height, dtype=np.float32) / side - (height / side / 2 + rng.uniform(-0.05, 0.05))
    angle = rng.uniform(0, TURN)
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y[:, None] * sin, y[:, None] * cos - x * sin


def _coverage(field: Plane) -> Plane:
    """Return how much of each pixel (0..1) lies where `field` is positive, for anti-aliased edges."""
    across = cv2.Sobel(field, -1, 1, 0, scale=1 / 8)
    down = cv2.Sobel(field, -1, 0, 1, scale=1 / 8)
    return np.clip(field / (np.hypot(across, down) + 1e-6) + 0.5, 0, 1)


def _ink(label: int, height: int, width: int, rng: Rng) -> Plane:
    """Draw a class's motif: how much of each pixel ink covers, 0..1."""
    u, v = _coordinates(height, width, rng)
    gauge, pattern = _MOTIFS[label](u, v, rng)
    inked = gauge[pattern > 0]
    wanted = min(int(rng.uniform(*INK_SHARE) * min(height, width) ** 2), inked.size - 1)
    scale = np.partition(inked, wanted)[wanted]
    return np.minimum(_coverage(scale - gauge), _coverage(pattern))


def _palette(rng: Rng) -> Plane:
    """Draw four colors: two of the background, one of the ink (of other lightness), one of the discs.

    Returns:
        RGB in 0..1, (4, 3, 1, 1).
    """
    base, gap = rng.uniform(22, 92), rng.uniform(32, 55)
    ink = min(97.0, base + gap) if rng.uniform(40, 62) > base else max(8.0, base - gap)
    lightness = [base, base + rng.uniform(-9, 9), ink, base + rng.uniform(-14, 14)]
    chroma = rng.uniform([8, 8, 15, 15], [50, 50, 65, 60])
    hue = rng.uniform(0, TURN, 4)
    hue[1] = hue[0] + rng.uniform(-0.9, 0.9)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    rgb = cv2.cvtColor(lab[None].astype(np.float32), cv2.COLOR_Lab2RGB)
    return np.asarray(rgb, np.float32).clip(0, 1).reshape(4, 3, 1, 1)


def _clouds(height: int, width: int, rng: Rng) -> Plane:
    """Draw a smooth random plane with values of about 0..1."""
    coarse = rng.random((4, 4), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def _discs(height: int, width: int, rng: Rng) -> Plane:
    """Draw up to three translucent discs as distractors: a plane of opacities, 0..1."""
    plane = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(0, 4)):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        radius = int(min(height, width) * rng.uniform(0.04, 0.13))
        cv2.circle(plane, center, radius, int(rng.integers(80, 200)), -1, cv2.LINE_AA)
    return plane / np.float32(255)


def _shadow(ink: Plane, rng: Rng) -> Plane:
    """Draw the soft shadow of the ink: a plane of factors on the background's brightness."""
    height, width = ink.shape
    right, down = rng.uniform(-0.02, 0.02, 2) * min(height, width)
    cast = cv2.warpAffine(ink, np.array([[1, 0, right], [0, 1, down]]), (width, height))
    soft = np.asarray(cv2.GaussianBlur(cast, (0, 0), 0.012 * min(height, width)), np.float32)
    return 1 - soft * rng.uniform(0, 0.35)


def _light(height: int, width: int, rng: Rng) -> Plane:
    """Draw light from one side and film grain: a plane of factors on the brightness."""
    angle, strength = rng.uniform(0, TURN), rng.uniform(0, 0.16)
    x: Plane = np.linspace(-1, 1, width, dtype=np.float32) * (strength * math.cos(angle))
    y: Plane = np.linspace(-1, 1, height, dtype=np.float32) * (strength * math.sin(angle))
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0.005, 0.03)
    return grain + (x + 1) + y.reshape(-1, 1)


@opencv
def draw(label: int, rng: np.random.Generator) -> Pixels:
    """Draw one image of class `label`.

    Args:
        label: index into `CLASSES`.
        rng: source of all random choices.

    Returns:
        uint8 (H, W, 3) RGB; the shorter side is 160 to 420 pixels.

    Raises:
        ValueError: the label is outside `CLASSES`.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label {label} is outside 0 to {len(CLASSES) - 1}")
    height, width = _size(rng)
    ink = _ink(label, height, width, rng)
    first, second, ink_color, disc_color = _palette(rng)
    # The canvas is (3, height, width) because NumPy broadcasts slowly over a last axis of three.
    canvas = first + (second - first) * _clouds(height, width, rng)
    canvas += (disc_color - canvas) * _discs(height, width, rng)
    canvas *= _shadow(ink, rng)
    canvas += (ink_color - canvas) * ink
    canvas *= _light(height, width, rng)
    levels = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _color_modes(indices: list[int], seed: int) -> dict[int, str]:
    """Choose which images of a split are stored as grayscale or CMYK: index → "L" or "CMYK"."""
    gray, cmyk = round(GRAY_SHARE * len(indices)), round(CMYK_SHARE * len(indices))
    # The third number separates this random stream from those of the images, [seed, index].
    shuffled = np.random.default_rng([seed, len(indices), 1]).permutation(indices).tolist()
    return dict(zip(shuffled, ["L"] * gray + ["CMYK"] * cmyk, strict=False))


def _splits(images: int) -> dict[str, list[int]]:
    """Divide the indices of `images` images between train and val."""
    # The second of each five goes to val, so that even 40 images have every class in val.
    in_val = np.arange(images) // len(CLASSES) % 5 == 1
    return {"train": np.flatnonzero(~in_val).tolist(), "val": np.flatnonzero(in_val).tolist()}


def _name(index: int) -> str:
    """Return the path of image `index` below its split's folder: `CLASS/CLASS_NUMBER.jpg`."""
    number, label = divmod(index, len(CLASSES))
    return f"{CLASSES[label]}/{CLASSES[label]}_{number + 1:05d}.jpg"


def _files(images: int) -> list[str]:
    """Return the paths of all images below the output folder."""
    return [f"{split}/{_name(index)}" for split, indices in _splits(images).items() for index in indices]


def _write_image(folder: Path, index: int, seed: int, mode: str) -> None:
    """Draw image `index` and save it as `folder/CLASS/CLASS_NUMBER.jpg` in Pillow's `mode`."""
    rng = np.random.default_rng([seed, index])
    image = Image.fromarray(draw(index % len(CLASSES), rng)).convert(mode)
    path = folder / _name(index)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=int(rng.integers(88, 96)))


def _check_request(out: Path, images: int, force: bool) -> list[str]:
    """Return the files of `out` that an earlier call drew; refuse a folder with others only."""
    if images < MIN_IMAGES:
        need = f"{len(CLASSES)} classes in two splits need {MIN_IMAGES}"
        raise UsageError(f"asked for {images} demo images, but {need}: ask for that many or more")
    if not out.is_file() and not (out.is_dir() and any(out.iterdir())):
        return []
    try:
        drawn = _files(msgspec.json.decode((out / RECORD).read_bytes(), type=_Record).images)
    except (OSError, msgspec.DecodeError):
        drawn = []
    if not (drawn and force):
        found = "a file" if out.is_file() else "a folder that is not empty"
        remedy = "replace its images with --force" if drawn else "name a new folder or remove it first"
        raise UsageError(f"asked to draw the demo into {out}, but found {found} there: {remedy}")
    if other := next((file for file in _files(images) if file not in drawn and (out / file).exists()), None):
        raise UsageError(f"{out / other}: is in the way, and was not drawn by this command; move it")
    return drawn


def _replace(out: Path, staging: Path, drawn: list[str]) -> None:
    """Move what was drawn into a folder from which the images drawn before are removed."""
    for file in drawn:
        (out / file).unlink(missing_ok=True)
    for folder in sorted({path for file in drawn for path in (out / file).parents[:2]}, reverse=True):
        with suppress(OSError):  # holds files of others
            folder.rmdir()
    for path in [staging / RECORD, *staging.rglob("*.jpg")]:
        target = out / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


@checked(seed=(0, math.inf))
def draw_demo(
    out: Path,
    images: int = 2000,
    seed: int = 2012,
    on_progress: OnProgress = no_progress,
    *,
    force: bool = False,
) -> dict[str, int]:
    """Write the demo source: `out/train/CLASS/CLASS_00001.jpg` and `out/val/CLASS/...`.

    The JPEGs have quality 88 to 95; about 2 % are grayscale and 0.5 % CMYK. Every fifth image of a class is
    in val. The same seed gives the same bytes under the same library versions. A new `out` appears only when
    it is complete: an interrupted run leaves nothing. `out/.demo.json` records how many images were drawn.

    Args:
        out: folder to write; it must not exist or be empty, unless `force` is given.
        images: number of images in both splits together, at least 40.
        seed: seed of all drawing, 0 or more.
        on_progress: called after each image with (images written, images in all).
        force: replace the images that an earlier call drew into `out`. Files of others there stay.

    Returns:
        Split → number of images.

    Raises:
        UsageError: `out` exists and is not an empty folder (with `force`: nor one that was drawn), or is a
            dead link, a file of others has a name that is needed, `images` is under 40, or `seed` is
            negative.
        OSError: the files cannot be written.
    """
    refuse_dead_link(out)
    out = out.resolve()
    drawn = _check_request(out, images, force)
    splits = _splits(images)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside: dict[str, Any] = {"prefix": f".{out.name}-", "dir": out.parent}
    with tempfile.TemporaryDirectory(**beside, ignore_cleanup_errors=True) as folder:
        staging = Path(folder) / out.name
        modes = _color_modes(splits["train"], seed) | _color_modes(splits["val"], seed)
        work = [(staging / split, index) for split, indices in splits.items() for index in indices]
        for written, (below, index) in enumerate(work, start=1):
            _write_image(below, index, seed, modes.get(index, "RGB"))
            on_progress(written, images)
        (staging / RECORD).write_bytes(msgspec.json.encode(_Record(images, seed)) + b"\n")
        if drawn:
            _replace(out, staging, drawn)
        elif out.exists():  # stays the same folder: it may be the current one
            for path in sorted(staging.iterdir(), reverse=True):  # the record is the last
                path.rename(out / path.name)
        else:
            staging.rename(out)
    return {split: len(indices) for split, indices in splits.items()}
