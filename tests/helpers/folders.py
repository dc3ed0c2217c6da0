"""Small sources and output folders for the tests of preparation, and processes to run there."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UsageError

SIZE = 48

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


def draw_image(seed, height=SIZE, width=SIZE):
    """A smooth color image with some grain, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def encoded(pixels, kind="JPEG", **options):
    """An image file of these pixels (array or PIL image) as bytes, written by Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def place(path, data=b"not empty"):
    """Write `data` to `path` and create its folders; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def overwrite(path, offset, data):
    """Replace the bytes of a file from `offset` on by `data`."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flat(root, **counts):
    """Write `root/CLASS/CLASS_N.jpg` for CLASS=count, which are no images; return `root`."""
    for name, count in counts.items():
        for number in range(count):
            place(root / name / f"{name}_{number:02d}.jpg")
    return root


def refused(call, *parts, error=UsageError):
    """Check that a call raises an error of one line that has these parts, by default a UsageError."""
    with pytest.raises(error) as raised:
        call()
    for part in parts:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def write_source(root, train=8, val=4, classes=("ant", "bee", "cat"), height=SIZE, width=SIZE):
    """Write `root/{train,val}/CLASS/CLASS_N.jpg`, `train` and `val` images per class; N counts all."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            for _ in range(count):
                data = encoded(draw_image(number, height, width), quality=92)
                place(root / split / name / f"{name}_{number}.jpg", data)
                number += 1
    return root


def tree(folder):
    """Relative path → SHA-256 of every file below `folder`, including hidden ones."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times(folder):
    """Relative path → modification time of every file and folder, nanoseconds."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def members(tar):
    """(name, bytes) of a tar's members in order, read by Python's tarfile."""
    with tarfile.open(tar) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def samples(folder, split):
    """Key → (JPEG, label member), both bytes, of all tars of a split."""
    found = {}
    for tar in sorted((folder / split).glob("*.tar")):
        stored = members(tar)
        for (jpg, data), (cls, label) in zip(stored[::2], stored[1::2], strict=True):
            assert jpg.removesuffix(".jpg") == cls.removesuffix(".cls")
            assert jpg.removesuffix(".jpg") not in found
            found[jpg.removesuffix(".jpg")] = (data, label)
    return found


def python(code, *arguments, **options):
    """Start `python -c code arguments` in a session of its own; `options` go to Popen."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, text=True, **options)


def workers_of(pid):
    """Ids of the live worker processes that process `pid` spawned (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z" and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def is_running(pid):
    """Whether a process exists and is not a zombie (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_root():
    return os.geteuid() == 0
