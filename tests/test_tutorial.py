"""The commands and images of the documentation: every command of the tutorial runs unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(name, language):
    """Return the code blocks in `language` of a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE)


def run(command, folder, **variables):
    tools = str(Path(sys.executable).parent)
    environment = os.environ | variables | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_runs(tmp_path):
    commands = blocks("tutorial.md", "bash")
    assert len(commands) == 10
    script = tmp_path / "tutorial.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(commands))
    folder = tmp_path / "work"
    folder.mkdir()
    run(["bash", str(script)], folder, IMAGES="300", FEW="1", MANY="2")
    named = re.findall(r"(?:--out|--preview|--json|--predictions) (\S+\.\w+)", "\n".join(commands))
    assert len(named) >= 11
    for name in named:
        assert (folder / name).stat().st_size > 0, name
        if name.endswith(".png"):
            with Image.open(folder / name) as image:
                image.load()


def test_every_image_that_the_documentation_shows_is_there():
    shown = {
        (page.name, target)
        for page in DOCS.glob("*.md")
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
    }
    assert len(shown) > 10
    for page, target in shown:
        assert (DOCS / target).is_file(), (page, target)


def test_the_example_of_neighbors_runs(tmp_path, monkeypatch, capsys):
    (example,) = blocks("figures.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out.strip() == example.rpartition("# ")[2].strip()
