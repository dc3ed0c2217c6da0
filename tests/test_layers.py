"""Imports between packages and rooms go one way only, as these lists say."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the lowest level up: a room may import lower levels, but no other room of its own level.
PIPELINE = [
    ["errors", "seeds", "progress", "text"],
    ["arguments", "host"],
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
    ["data", "precision"],
    ["runs"],
    ["callbacks", "evaluation", "export"],
    ["training", "inference"],
    ["figures"],
    ["report"],
]
CLI = [
    ["common"],
    ["status", "report"],
    ["prep", "plan", "bench", "train", "eval", "show", "predict", "export"],
    ["entry"],
]
PACKAGES = {"pipeline": PIPELINE, "trainer": TRAINER, "cli": CLI}
"""Rooms of each package; a package may import those before it."""

FORBIDDEN = {
    "pipeline.sharding": ["pipeline.loader"],
    "pipeline.verification": ["pipeline.loader"],
    "trainer.figures": ["trainer.training"],
    "trainer.report": ["trainer.training"],
}
"""Room → prefixes that it may not import although its level would allow it."""


def modules(root: Path) -> dict[str, Path]:
    """Return dotted name → file of every module of the packages in `root`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import in a file, also in functions; name is "" for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the project's modules that a file imports, and packages from which it imports public names."""
    for module, name in imported_names(path):
        if is_ours(module):
            yield f"{module}.{name}" if f"{module}.{name}" in known else module


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def room(name: str) -> str:
    """`pipeline.loader.dali.graph` → `loader`."""
    return [*name.split("."), ""][1]


def level(name: str) -> int:
    """Return the level of a module's room; a package itself (its public names) is above all its rooms."""
    levels = PACKAGES[name.partition(".")[0]]
    if not room(name):
        return len(levels)
    found = [number for number, rooms in enumerate(levels) if room(name) in rooms]
    assert found, f"{name}: its room is missing from the levels in tests/test_layers.py"
    return found[0]


def violations(root: Path) -> list[str]:
    """Return the imports of a higher level, of another room on the same level, or of a forbidden room."""
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
        ("trainer/figures/curves.py", "from trainer.training.options import TrainJob"),
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
