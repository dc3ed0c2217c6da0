"""Where caches go: the user's folder, or a temporary one."""

import os
import tempfile
from pathlib import Path

import pytest

from cli.common import environment
from cli.common.environment import choose_cache_folders


@pytest.fixture
def private(tmp_path, monkeypatch):
    """The temporary folder that is used if one is needed."""
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(tmp_path / "private"))
    environment._temporary_folder.cache_clear()
    yield tmp_path / "private"
    environment._temporary_folder.cache_clear()


@pytest.mark.parametrize(
    ("variables", "compiled"),
    [
        ({"HOME": "home"}, "home/.cache/alexnet-toolkit/compiled"),
        ({"HOME": "file", "XDG_CACHE_HOME": "xdg"}, "xdg/alexnet-toolkit/compiled"),
        ({"HOME": "file"}, "private/alexnet-toolkit/compiled"),
        ({"HOME": "my home"}, "private/compiled"),  # compilers would see two files
        ({"HOME": "file", "TORCHINDUCTOR_CACHE_DIR": "own"}, "own"),
    ],
)
def test_compiled_kernels_go_where_they_can_be_written_and_read(
    variables, compiled, private, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    given = {name: str(tmp_path / value) for name, value in variables.items()}
    monkeypatch.setattr(os, "environ", given | {"USER": "me"})
    choose_cache_folders()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / compiled)
    assert ("MPLCONFIGDIR" in os.environ) == (variables["HOME"] == "file")


def test_a_user_without_home_and_name_gets_both(private, monkeypatch):
    """As in a container under a foreign uid."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    choose_cache_folders()
    assert Path.home() == private
    assert os.environ["LOGNAME"] == f"uid{os.getuid()}"
