"""Name of an unfinished dataset's work folder, and the versions that datasets record."""

import platform
from importlib.metadata import version

WORK = ".work"
"""Folder in an unfinished dataset that holds the plan and the results of finished shards."""


def versions() -> dict[str, str]:
    """Return the versions of this package and its libraries, and the CPU architecture.

    A shard's bytes are repeatable given these.
    """
    names = ("alexnet-toolkit", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
    return {name: version(name) for name in names} | {"architecture": platform.machine()}
