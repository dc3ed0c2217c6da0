"""Images, shards and batches. Names resolve on first use: preparing imports neither torch nor DALI."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset.checksums import verify_checksums
    from pipeline.dataset.dataset import Dataset
    from pipeline.dataset.manifest import Manifest, read_manifest
    from pipeline.dataset.report import read_report
    from pipeline.demo import draw_demo
    from pipeline.errors import RunError, ToolkitError, UsageError
    from pipeline.executors.local import Engine, LocalEngine
    from pipeline.executors.ray import RayEngine
    from pipeline.images.statistics import Statistics
    from pipeline.loader.loader import Batch, Loader
    from pipeline.loader.placement import Placement, choose_device
    from pipeline.loader.shard_files import Access
    from pipeline.loader.views import ColourNoise, EvalView, TrainView, colour_noise
    from pipeline.preview import draw_preview
    from pipeline.sharding.job import finish, prepare, prepare_slice
    from pipeline.sharding.plan import Options
    from pipeline.sources.base import Source
    from pipeline.sources.detection import read_source
    from pipeline.storage.open import open_store
    from pipeline.verification.adopt import adopt
    from pipeline.verification.dataset import verify
    from pipeline.verification.measure import decoded_statistics

_HOME = {
    "Access": "loader.shard_files",
    "Batch": "loader.loader",
    "ColourNoise": "loader.views",
    "Dataset": "dataset.dataset",
    "Engine": "executors.local",
    "EvalView": "loader.views",
    "Loader": "loader.loader",
    "LocalEngine": "executors.local",
    "Manifest": "dataset.manifest",
    "Options": "sharding.plan",
    "Placement": "loader.placement",
    "RayEngine": "executors.ray",
    "RunError": "errors",
    "Source": "sources.base",
    "Statistics": "images.statistics",
    "ToolkitError": "errors",
    "TrainView": "loader.views",
    "UsageError": "errors",
    "adopt": "verification.adopt",
    "choose_device": "loader.placement",
    "colour_noise": "loader.views",
    "decoded_statistics": "verification.measure",
    "draw_demo": "demo",
    "draw_preview": "preview",
    "finish": "sharding.job",
    "open_store": "storage.open",
    "prepare": "sharding.job",
    "prepare_slice": "sharding.job",
    "read_manifest": "dataset.manifest",
    "read_report": "dataset.report",
    "read_source": "sources.detection",
    "verify": "verification.dataset",
    "verify_checksums": "dataset.checksums",
}

__all__ = [
    "Access",
    "Batch",
    "ColourNoise",
    "Dataset",
    "Engine",
    "EvalView",
    "Loader",
    "LocalEngine",
    "Manifest",
    "Options",
    "Placement",
    "RayEngine",
    "RunError",
    "Source",
    "Statistics",
    "ToolkitError",
    "TrainView",
    "UsageError",
    "adopt",
    "choose_device",
    "colour_noise",
    "decoded_statistics",
    "draw_demo",
    "draw_preview",
    "finish",
    "open_store",
    "prepare",
    "prepare_slice",
    "read_manifest",
    "read_report",
    "read_source",
    "verify",
    "verify_checksums",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
