import subprocess
import sys
from pathlib import Path

import pytest

import pipeline


def test_all_lists_exactly_the_names_that_resolve():
    assert pipeline.__all__ == sorted(pipeline._HOME)
    assert len(set(pipeline.__all__)) == len(pipeline.__all__)
    for name in pipeline.__all__:
        value = getattr(pipeline, name)
        if hasattr(value, "__module__") and value.__module__.startswith("pipeline."):
            assert value.__module__ == f"pipeline.{pipeline._HOME[name]}"


def test_the_type_checker_sees_the_same_names():
    source = Path(pipeline.__file__).read_text()
    block = source[source.index("if TYPE_CHECKING:") : source.index("_HOME")]
    imported = [
        name.strip()
        for line in block.splitlines()[1:]
        if line.strip()
        for name in line.partition(" import ")[2].split(",")
    ]
    assert sorted(imported) == pipeline.__all__


def test_other_names_do_not_resolve():
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'Datasets'"):
        pipeline.Datasets  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline",
        "import pipeline.sharding.job",
        "from pipeline import Dataset, Options, prepare, read_source, draw_demo",
    ],
)
def test_preparing_imports_neither_torch_nor_dali(statement):
    code = f"import sys; {statement}; print([m for m in ('torch', 'nvidia.dali', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_the_package_imports_nothing_of_weight():
    code = "import sys, pipeline; print([m for m in ('numpy', 'cv2', 'PIL', 'msgspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_pipeline_never_imports_trainer_or_cli():
    for path in Path(pipeline.__file__).parent.glob("*.py"):
        text = path.read_text()
        for package in ("trainer", "cli"):
            assert f"import {package}" not in text, path
            assert f"from {package}" not in text, path
