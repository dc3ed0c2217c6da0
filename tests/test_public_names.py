"""The packages' public names: listed once, resolved on first use, and typed."""

import ast
import re
import subprocess
import sys
import venv
from importlib import import_module
from pathlib import Path

import pytest

import pipeline
import trainer

ROOT = Path(__file__).parents[1]
PACKAGES = [pipeline, trainer]
PUBLIC = [(package, name) for package in PACKAGES for name in package.__all__]


def modules_of(package):
    """Return public name → module, read from the package's stub file."""
    stub = Path(package.__file__).with_suffix(".pyi").read_text()
    found = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name: f"{package.__name__}.{node.module}" for alias in node.names}
    return found


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_each_public_name_is_defined_where_the_stub_says(package, name):
    module = modules_of(package)[name]
    value = getattr(package, name)
    assert value is getattr(import_module(module), name)
    assert getattr(value, "__module__", module) == module


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_a_room_or_module_too(package):
    """Importing a submodule binds its name on the package, which would hide a public name."""
    folder = Path(package.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix in (".py", "")}
    assert not modules & set(package.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_another_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="Datasets"):
        package.Datasets  # noqa: B018


NUMERIC = ("numpy", "cv2", "PIL", "msgspec", "torch", "nvidia.dali")


# Run one after the other: what a statement may import, those after it may too.
LIGHT = [
    ("import pipeline, trainer", NUMERIC),
    ("import pipeline.sharding.job, pipeline.sharding.task", ("torch", "nvidia.dali", "ray")),
    ("from pipeline import Options, prepare, read_source, draw_demo", ("torch", "nvidia.dali", "webdataset")),
    ("from pipeline import Dataset, Samples", ("torch", "nvidia.dali", "webdataset")),
    ("from trainer import load_recipe; load_recipe('paper')", ("torch", "nvidia.dali")),
    ("import trainer.report.page; from trainer import write_report", ("nvidia.dali",)),
    ("import trainer.figures.predictions; from trainer import draw_curves", ("nvidia.dali",)),
]


def test_what_is_not_needed_is_not_imported():
    checks = [f"{line}; print([m for m in {heavy!r} if m in sys.modules])" for line, heavy in LIGHT]
    code = "\n".join(["import sys", *checks])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" * len(LIGHT)


@pytest.mark.parametrize("package", ["pipeline", "trainer", "cli"])
def test_each_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


SCRIPT = """
from pathlib import Path
from typing import assert_type
import numpy as np
from numpy.typing import NDArray
from pipeline import Dataset, EvalView, Options, open_loader, prepare, read_source
from trainer import load_recipe

reveal_type(prepare(read_source("photographs"), Path("shards"), Options(size=128)))
with open_loader("shards", "val", global_batch=32, view=EvalView("center", 224)) as loader:
    for batch in loader:
        reveal_type(batch.images)
assert_type(Dataset.open("shards").samples("val")[0].image, NDArray[np.uint8])
assert_type(Dataset.open("shards").samples("val", len)[0].image, int)
load_recipe("paper").epochs + "ninety"
Options(size="128")
"""


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_installed_wheel(tmp_path):
    """The installed wheel is typed, and has the recipes and the report's template."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*command, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(wheel, check=True)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*command, "--python", python, "install", "--no-deps", built], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {
        "pipeline",
        "trainer",
        "cli",
    }
    assert (site / "trainer/recipes/paper.toml").is_file()
    assert (site / "trainer/report/page.html.jinja").is_file()
    (other,) = {path for path in map(Path, sys.path) if (path / "torch").is_dir()}
    (site / "libraries.pth").write_text(f"{other}\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    check = [sys.executable, "-m", "mypy", "--python-executable", python, "--strict", "script.py"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.findall(r"script.py:(\d+): (?:note|error): (.*)", done.stdout) == [
        ("9", 'Revealed type is "pipeline.dataset.manifest.Manifest"'),
        ("12", 'Revealed type is "torch._tensor.Tensor"'),
        ("15", 'Unsupported operand types for + ("int" and "str")  [operator]'),
        ("16", 'Argument "size" to "Options" has incompatible type "str"; expected "int"  [arg-type]'),
    ]
