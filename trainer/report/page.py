"""Report of a run as one self-contained HTML page: summary, curves, kernels, predictions, data, recipe."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.dataset.dataset import Dataset
from pipeline.errors import ToolkitError, UsageError
from pipeline.storage.atomic import write_bytes
from trainer.report import parts
from trainer.report.parts import has_dali
from trainer.runs.load_model import LoadedModel, dataset_of, load_model, refuse_other_classes, run_facts

Progress = Callable[[str, int, int], None]
"""Progress callback, called with (heading of the section, images done, images in all)."""

SECTIONS: Mapping[str, str] = {
    "summary": "Summary",
    "curves": "Curves",
    "throughput": "Throughput",
    "kernels": "Kernels",
    "predictions": "Predictions",
    "neighbors": "Nearest neighbors",
    "confusion": "Confusion",
    "data": "Data",
    "recipe": "Recipe",
}
"""Sections of the page in order: id → heading."""

SKIPPABLE = tuple(name for name in SECTIONS if name != "summary")
"""Ids of the sections that can be left out."""


@dataclass(frozen=True)
class Report:
    """Result of `write_report`.

    Attributes:
        file: Path of the HTML file.
        left_out: Id of each section that is not on the page → reason.
    """

    file: Path
    left_out: dict[str, str]


@dataclass
class _Page:
    """Sections of the page while it is being made.

    Attributes:
        progress: Progress callback of `write_report`.
        skip: Ids of sections to leave out.
        made: Id of a finished section → values for the template.
        left_out: Id of a section that is left out → reason.
    """

    progress: Progress
    skip: Sequence[str]
    made: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Make a section, or note why it is left out."""
        if name in self.skip:
            self.left_out[name] = "skipped (--skip)"
            return
        try:
            self.made[name] = make()
        except ToolkitError as error:
            self.left_out[name] = " ".join(str(error).split())

    def progress_of(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(SECTIONS[name], done, total)


def write_report(
    run: Path,
    out: Path,
    data: str | Path | None = None,
    *,
    skip: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Report:
    """Write the report of a run as one HTML file, which needs no internet and suits phones and paper.

    A section that cannot be made, for example because the dataset is missing, is left out; the page and the
    result list these sections with the reasons.

    Args:
        run: Folder of the run.
        out: HTML file to write.
        data: Path or URL of the dataset, if it is no longer where run.json says.
        skip: Ids of sections to leave out, from `SKIPPABLE`.
        seed: Seed of the random choice of images.
        progress: Called with (heading of the section, images done, images in all).

    Raises:
        UsageError: `run` is no run folder or has no checkpoint, `data` is no dataset with the network's
            classes, or a name in `skip` is unknown.
        RunError: the page cannot be written.
    """
    for name in skip:
        if name not in SKIPPABLE:
            raise UsageError(f"--skip {name}: no such section; there are {', '.join(SKIPPABLE)}")
    if run.is_file():
        raise UsageError(f"{run}: a report is about a whole run; name the run's folder, {run.parent}")
    trained = load_model(run)
    facts = run_facts(run)
    page = _Page(progress, skip)
    dataset, no_dataset = _dataset(trained, data)
    page.add("summary", lambda: parts.summary(trained, facts, dataset))
    page.add("curves", lambda: parts.curves(run))
    page.add("throughput", lambda: parts.throughput(run, facts))
    page.add("kernels", lambda: parts.kernels(trained))
    _add_data_sections(page, trained, dataset, no_dataset, seed)
    page.add("recipe", lambda: parts.recipe(run))
    write_bytes(out, _render(trained.name, page).encode())
    return Report(out, page.left_out)


def _dataset(trained: LoadedModel, data: str | Path | None) -> tuple[Dataset | None, str]:
    """Open the run's dataset; return (dataset, "") or (None, reason). A dataset given as `data` must open."""
    try:
        dataset = dataset_of(trained, data)
        refuse_other_classes(trained, dataset)
        return dataset, ""
    except UsageError as error:
        if data is not None:
            raise
        return None, str(error)


def _add_data_sections(
    page: _Page, trained: LoadedModel, dataset: Dataset | None, no_dataset: str, seed: int
) -> None:
    """Add the sections that need the dataset, some of them DALI too."""

    def of_data(make: Callable[[Dataset], Any], *, dali: bool = False) -> Callable[[], Any]:
        def made() -> Any:
            if dataset is None:
                raise UsageError(no_dataset)
            if dali and not has_dali():
                raise UsageError("needs NVIDIA DALI to read a whole split, and it is not installed")
            return make(dataset)

        return made

    page.add("predictions", of_data(lambda data: parts.predictions(trained, data, seed)))
    page.add(
        "neighbors",
        of_data(lambda data: parts.neighbors(trained, data, seed, page.progress_of("neighbors")), dali=True),
    )
    page.add(
        "confusion",
        of_data(lambda data: parts.confusion(trained, data, page.progress_of("confusion")), dali=True),
    )
    page.add("data", of_data(lambda data: parts.data_facts(trained, data, seed)))


def _render(name: str, page: _Page) -> str:
    """Render the page of the run called `name` to HTML."""
    environment = Environment(
        loader=PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = _data_uri
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    html = environment.get_template("page.html.jinja").render(
        name=name,
        sections=SECTIONS,
        made=page.made,
        left_out=page.left_out,
        version=version("alexnet-toolkit"),
    )
    return re.sub(r"\n\s*\n+", "\n", html)


def _data_uri(content: bytes) -> str:
    """Return the data: URI of an image file's bytes (JPEG, PNG or SVG)."""
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png"}
    kind = kinds.get(content[:2], "svg+xml")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
