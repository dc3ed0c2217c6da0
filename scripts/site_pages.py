"""Hooks of the documentation's site: pages made from other files, and a check of what pages load.

The home page is README.md. The reference of the public library lists the names in the packages'
`__init__.pyi`, and that of the commands the entry points in pyproject.toml.
"""

import ast
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PROJECT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

# What a browser loads by itself: scripts, images, frames, style sheets.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^\s>]*"""
    r"""|<link\b[^>]*rel=["']?(?:stylesheet|preconnect|preload)\b[^>]*href=["']?(?:https?:)?//[^\s>]*"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    pages = {target: _project_page(ROOT / name) for name, target in PROJECT_PAGES.items()}
    pages["reference/commands.md"] = _commands()
    for package in ("pipeline", "trainer"):
        pages[f"reference/{package}.md"] = _library(package)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Leave the cell of an option's default empty where click has none, or a function that finds it."""
    return re.sub(r"<code>(Sentinel\.UNSET|&lt;function [^<]*)</code>", "", html)


def on_post_page(output: str, page: object, **_: object) -> str:
    """Refuse a page that loads anything from another host."""
    if loaded := _LOADED.search(output):
        raise PluginError(f"{page} loads something from another host: {loaded.group()}")
    return output


def _project_page(path: Path) -> str:
    """Return a page of the repository's root with its links as the site has them."""
    text = path.read_text(encoding="utf-8").replace("](docs/", "](")
    for name, target in PROJECT_PAGES.items():
        text = text.replace(f"]({name})", f"]({target})")
    return text.replace(", see [LICENSE](LICENSE)", "")


def _library(package: str) -> str:
    """Return the reference of a package's public names, a section for each module that defines some."""
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    purpose = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    lines = [f"# {package}", "", purpose.partition("\n")[0], ""]
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}"
            lines += [f"## {module}", ""]
            for alias in node.names:
                lines += [f"::: {module}.{alias.name}", ""]
    return "\n".join(lines)


def _commands() -> str:
    """Return the reference of the commands: the help of each, from click."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = ["# Commands", ""]
    for name in project["scripts"]:
        lines += [
            "::: mkdocs-click",
            f"    :module: cli.{name.removeprefix('alexnet-')}",  # `cli.entry` imports the command from there
            "    :command: main",
            f"    :prog_name: {name}",
            "    :depth: 1",
            "    :style: table",
            "",
        ]
    return "\n".join(lines)
