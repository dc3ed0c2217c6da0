"""The work folder of an unfinished dataset: its name, and the versions that it records."""

import platform
from importlib.metadata import version

WORK = ".work"


def versions() -> dict[str, str]:
    """This tool's, the libraries' and the architecture's versions: bytes are repeatable given these."""
    names = ("alexnet-toolkit", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
    return {name: version(name) for name in names} | {"architecture": platform.machine()}
