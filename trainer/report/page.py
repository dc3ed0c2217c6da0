"""One self-contained page about a run: what it is, how it went, what the network learnt and what it sees."""

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
"""Parts of the page in their order, and their headings."""

SKIPPABLE = tuple(name for name in SECTIONS if name != "summary")


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote.

    Attributes:
        file: the page.
        left_out: parts that it lacks, by name, each with the reason.
    """

    file: Path
    left_out: dict[str, str]


@dataclass
class _Page:
    """The parts made so far, and those that could not be."""

    progress: Progress
    skip: Sequence[str]
    made: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Any]) -> None:
        if name in self.skip:
            self.left_out[name] = "not asked for (--skip)"
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
    """Write a page about a run that shows without a network, on a phone and on paper.

    A part that cannot be made, such as for want of the dataset, is left out; the page and the result say
    which and why.

    Args:
        run: a run's folder.
        out: the HTML file.
        data: the dataset, where it is no longer at the place that run.json names.
        skip: names of `SKIPPABLE` parts to leave out.
        seed: of the images that are chosen.
        progress: called with a part's heading, the images done and all of them.

    Raises:
        UsageError: no run's folder, no checkpoint in it, `data` is no dataset, or an unknown part.
        RunError: the page cannot be written.
    """
    for name in skip:
        if name not in SKIPPABLE:
            raise UsageError(f"--skip {name}: no such part; there are {', '.join(SKIPPABLE)}")
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
    _add_parts_of_data(page, trained, dataset, no_dataset, seed)
    page.add("recipe", lambda: parts.recipe(run))
    write_bytes(out, _render(trained.name, page).encode())
    return Report(out, page.left_out)


def _dataset(trained: LoadedModel, data: str | Path | None) -> tuple[Dataset | None, str]:
    """The dataset, or why there is none; one that was named must be usable."""
    try:
        dataset = dataset_of(trained, data)
        refuse_other_classes(trained, dataset)
        return dataset, ""
    except UsageError as error:
        if data is not None:
            raise
        return None, str(error)


def _add_parts_of_data(
    page: _Page, trained: LoadedModel, dataset: Dataset | None, no_dataset: str, seed: int
) -> None:
    def of_data(make: Callable[[Dataset], Any], *, dali: bool = False) -> Callable[[], Any]:
        def made() -> Any:
            if dataset is None:
                raise UsageError(no_dataset)
            if dali and not has_dali():
                raise UsageError("needs NVIDIA DALI to read a whole split, which is not installed")
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
    """An image's bytes as an address that holds them."""
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png"}
    kind = kinds.get(content[:2], "svg+xml")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
