"""Imports go one way: docs/architecture.md has the image that these lists repeat."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. What stands on one line does not import each other.
PIPELINE = [
    ["errors", "seeds", "host"],
    ["storage", "executors"],
    ["images"],
    ["dataset"],
    ["sources", "loader"],
    ["sharding", "verification"],
    ["demo", "preview"],
]
TRAINER = [
    ["recipe"],
    ["models"],
    ["optim", "distributed"],
    ["data"],
    ["runs"],
    ["callbacks", "evaluation", "export"],
    ["training", "inference"],
    ["figures"],
    ["report"],
]
CLI = [["common"], ["status", "plan", "bench"], ["prep", "train", "eval", "show", "predict", "export"]]
PACKAGES = {"pipeline": PIPELINE, "trainer": TRAINER, "cli": CLI}
"""Each package may import those before it."""

FORBIDDEN = {
    "pipeline.sharding": ["pipeline.loader"],
    "pipeline.verification": ["pipeline.loader"],
    "trainer.figures": ["trainer.training"],
    "trainer.report": ["trainer.training"],
}
"""What the levels alone would allow."""


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file of every module of the packages below `root`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import in a file, wherever it stands; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports, and the packages whose public names it takes."""
    for module, name in imported_names(path):
        if is_ours(module):
            yield f"{module}.{name}" if f"{module}.{name}" in known else module


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def room(name: str) -> str:
    """`pipeline.loader.dali.graph` → `loader`."""
    return [*name.split("."), ""][1]


def level(name: str) -> int:
    """The level of a module's room; a package's public names stand above all its rooms."""
    levels = PACKAGES[name.partition(".")[0]]
    if not room(name):
        return len(levels)
    found = [number for number, rooms in enumerate(levels) if room(name) in rooms]
    assert found, f"{name}: its room stands on no level of tests/test_layers.py"
    return found[0]


def violations(root: Path) -> list[str]:
    """Imports that lead upwards, sideways or to what is forbidden."""
    known = modules(root)
    order = list(PACKAGES)
    wrong = []
    for name, path in known.items():
        package = name.partition(".")[0]
        for target in imports(path, known):
            other = target.partition(".")[0]
            if package == other:
                allowed = room(name) == room(target) or level(target) < level(name)
            else:
                allowed = order.index(other) < order.index(package)
            forbidden = (f for above, below in FORBIDDEN.items() if name.startswith(above) for f in below)
            if not allowed or target.startswith(tuple(forbidden)):
                wrong.append(f"{name} imports {target}")
    return wrong


def test_imports_go_one_way():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipeline/errors.py", "from trainer import recipe"),
        ("pipeline/errors.py", "from trainer import Recipe"),
        ("pipeline/sources/spool.py", "from pipeline.sharding.plan import Plan"),
        ("pipeline/storage/base.py", "import pipeline.images.codec"),
        ("pipeline/loader/loader.py", "from pipeline import prepare"),
        ("trainer/figures/style.py", "from trainer.training.options import TrainJob"),
        ("trainer/models/layers.py", "from cli import train"),
    ],
)
def test_an_import_against_the_layers_is_found(file, line, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    for target in ("trainer/recipe.py", "cli/train.py"):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).touch()
    path.write_text(f"def later():\n    {line}\n")
    assert len(violations(tmp_path)) == 1


def test_no_module_imports_itself_by_a_detour():
    known = modules(ROOT)
    graph = {name: {t for t in imports(path, known) if t in known} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_folder_has_more_than_twelve_modules():
    for folder in {path.parent for path in modules(ROOT).values()}:
        names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(names) <= 12, f"{folder}: {names}"


def test_a_rooms_init_is_its_docstring_alone():
    for path in modules(ROOT).values():
        if path.name == "__init__.py" and path.parent.parent != ROOT:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1, path


def test_no_module_imports_another_ones_private_names_or_relatively():
    for path in modules(ROOT).values():
        for module, name in imported_names(path):
            assert not module.startswith("."), f"{path}: {module}"
            assert not (is_ours(module) and name.startswith("_")), f"{path}: {module}.{name}"
