"""Public names of `pipeline` and the modules that define them."""

from .dataset.checksums import verify_checksums as verify_checksums
from .dataset.dataset import Dataset as Dataset
from .dataset.manifest import Manifest as Manifest, read_manifest as read_manifest
from .dataset.report import read_report as read_report
from .dataset.samples import Sample as Sample, Samples as Samples
from .demo import draw_demo as draw_demo
from .errors import RunError as RunError, ToolkitError as ToolkitError, UsageError as UsageError
from .executors.base import Executor as Executor
from .executors.local import LocalExecutor as LocalExecutor
from .executors.ray import RayExecutor as RayExecutor
from .images.statistics import Statistics as Statistics
from .loader.live_shards import ReadOptions as ReadOptions
from .loader.loader import Batch as Batch, Loader as Loader
from .loader.open import open_loader as open_loader
from .loader.placement import Placement as Placement, choose_backend as choose_backend
from .loader.stats import LoaderStats as LoaderStats
from .loader.views import (
    ColorNoise as ColorNoise,
    EvalView as EvalView,
    TrainView as TrainView,
    color_noise as color_noise,
)
from .preview import draw_preview as draw_preview
from .sharding.job import finish as finish, prepare as prepare, prepare_slice as prepare_slice
from .sharding.plan import Options as Options
from .sources.base import Source as Source, SourceOptions as SourceOptions
from .sources.detection import read_source as read_source
from .storage.open import open_store as open_store
from .verification.adopt import adopt as adopt
from .verification.dataset import verify as verify
from .verification.measure import decoded_statistics as decoded_statistics
