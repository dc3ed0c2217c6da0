"""Report of a run as one self-contained HTML page: summary, curves, kernels, predictions, data, recipe."""

import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.arguments import check_word, checked
from pipeline.dataset.dataset import Dataset
from pipeline.errors import ToolkitError, UsageError
from pipeline.progress import OnProgress, no_progress
from pipeline.storage.atomic import write_bytes
from pipeline.text import visible
from trainer.precision import PrecisionName
from trainer.report import parts
from trainer.runs.class_match import refuse_other_classes
from trainer.runs.load_model import LoadedModel, dataset_of, load_model, run_facts

SECTIONS: Mapping[str, tuple[str, Callable[[parts.Source], Any]]] = {
    "summary": ("Summary", parts.summary),
    "curves": ("Curves", parts.curves),
    "throughput": ("Throughput", parts.throughput),
    "kernels": ("Kernels", parts.kernels),
    "predictions": ("Predictions", parts.predictions),
    "neighbors": ("Nearest neighbors", parts.neighbors),
    "confusion": ("Confusion", parts.confusion),
    "data": ("Data", parts.data_facts),
    "recipe": ("Recipe", parts.recipe),
}
"""Sections of the page in order: id → heading, and function that returns the values for the template."""

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


@checked(seed=(0, math.inf))
def write_report(
    run: Path,
    out: Path,
    data: str | Path | None = None,
    *,
    skip: Sequence[str] = (),
    seed: int = 0,
    precision: PrecisionName = "float32",
    on_progress: OnProgress = no_progress,
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
        precision: Precision in which the network is computed.
        on_progress: Called with (images done, images in all) of the section that is being made.

    Raises:
        UsageError: `run` is no run folder or has no checkpoint, `data` is no dataset with the network's
            classes, or a name in `skip` is unknown.
        RunError: the page cannot be written.
    """
    for name in skip:
        check_word("--skip", name, SKIPPABLE)
    if run.is_file():
        raise UsageError(f"{run}: a report is about a whole run; name the run's folder, {run.parent}")
    trained = load_model(run)
    source = parts.Source(
        run=run,
        trained=trained,
        facts=run_facts(run),
        opened=_open(trained, data),
        seed=seed,
        precision=precision,
        on_progress=on_progress,
    )
    made: dict[str, Any] = {}
    left_out = {}
    for name, (_, make) in SECTIONS.items():
        try:
            if name in skip:
                raise UsageError("skipped (--skip)")
            made[name] = make(source)
        except ToolkitError as error:
            left_out[name] = " ".join(str(error).split())
    write_bytes(out, _render(trained.name, made, left_out).encode())
    return Report(out, left_out)


def _open(trained: LoadedModel, data: str | Path | None) -> Dataset | str:
    """Open the run's dataset, or return the reason why not. A dataset given as `data` must open."""
    try:
        dataset = dataset_of(trained, data)
        refuse_other_classes(trained.checkpoint, trained.spec, dataset)
        return dataset
    except UsageError as error:
        if data is not None:
            raise
        return str(error)


def _render(name: str, made: dict[str, Any], left_out: dict[str, str]) -> str:
    """Render the page of the run called `name` to HTML."""
    environment = Environment(
        loader=PackageLoader("trainer.report", "."),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = _data_uri
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"
    environment.filters["decimals"] = lambda value: "–" if value is None else f"{value:.4f}"
    html = environment.get_template("page.html.jinja").render(
        name=name,
        sections={id_: heading for id_, (heading, _) in SECTIONS.items()},
        made=made,
        left_out=left_out,
        version=version("alexnet-toolkit"),
    )
    return re.sub(r"\n\s*\n+", "\n", html)


def _data_uri(content: bytes) -> str:
    """Return the data: URI of an image file's bytes (JPEG, PNG or SVG)."""
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png"}
    kind = kinds.get(content[:2], "svg+xml")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
