"""Images, shards and batches. Names resolve on first use: preparing imports neither torch nor DALI."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.augment import ColourNoise, EvalView, TrainView, colour_noise
    from pipeline.dataset import Dataset
    from pipeline.demo import draw_demo
    from pipeline.errors import RunError, ToolkitError, UsageError
    from pipeline.loader import Batch, Loader, Placement
    from pipeline.manifest import Manifest, read_manifest
    from pipeline.plan import Options
    from pipeline.preparation import prepare, read_report
    from pipeline.preview import draw_preview
    from pipeline.sources import Source, read_class_folders
    from pipeline.statistics import Statistics

_HOME = {
    "Batch": "loader",
    "ColourNoise": "augment",
    "Dataset": "dataset",
    "EvalView": "augment",
    "Loader": "loader",
    "Manifest": "manifest",
    "Options": "plan",
    "Placement": "loader",
    "RunError": "errors",
    "Source": "sources",
    "Statistics": "statistics",
    "ToolkitError": "errors",
    "TrainView": "augment",
    "UsageError": "errors",
    "colour_noise": "augment",
    "draw_demo": "demo",
    "draw_preview": "preview",
    "prepare": "preparation",
    "read_class_folders": "sources",
    "read_manifest": "manifest",
    "read_report": "preparation",
}

__all__ = [
    "Batch",
    "ColourNoise",
    "Dataset",
    "EvalView",
    "Loader",
    "Manifest",
    "Options",
    "Placement",
    "RunError",
    "Source",
    "Statistics",
    "ToolkitError",
    "TrainView",
    "UsageError",
    "colour_noise",
    "draw_demo",
    "draw_preview",
    "prepare",
    "read_class_folders",
    "read_manifest",
    "read_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
