"""Options of a training run besides its recipe, and its result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.arguments import COUNT, POSITIVE, check_record
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.data import LoaderOptions
from trainer.recipe import Recipe
from trainer.runs.records import Ending, Progress, Validation

Resume = Literal["no", "must", "auto"]
"""Whether to resume: start a new run, continue a run, or continue where there is one."""


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written, besides at the end of each epoch, and how many are kept.

    Attributes:
        steps: Steps between two checkpoints; None for no checkpoints by steps.
        minutes: Minutes between two checkpoints; None for no checkpoints by time.
        keep: Number of newest checkpoints to keep, at least 1; best.pt is kept besides.

    Raises:
        UsageError: A number is out of range.
    """

    steps: int | None = None
    minutes: float | None = 15.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_record(self, steps=COUNT, minutes=POSITIVE, keep=COUNT)


@dataclass(frozen=True)
class Debugging:
    """Options to try out a run.

    Attributes:
        synthetic: Train on one batch of noise, which shows the speed without the loader.
        overfit_batch: Train on the first batch only, augmented once; its loss must go to zero.
        steps: Stop once the run has made this many steps, with a checkpoint; None for no limit.
        profile: File to write a Chrome trace of a few steps to; None for no trace.

    Raises:
        UsageError: `steps` is below 1, or both `synthetic` and `overfit_batch` are set.
    """

    synthetic: bool = False
    overfit_batch: bool = False
    steps: int | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        check_record(self, steps=COUNT)
        if self.synthetic and self.overfit_batch:
            raise UsageError("--synthetic and --overfit-batch were both given; choose one")

    @property
    def one_batch(self) -> str:
        """The option that replaces the data with one batch: "--synthetic", "--overfit-batch" or ""."""
        return "--synthetic" if self.synthetic else "--overfit-batch" if self.overfit_batch else ""


@dataclass(frozen=True)
class TrainJob:
    """A training run: its data, recipe, folder and options.

    Attributes:
        data: Path or URL of the dataset.
        out: The run's folder.
        recipe: Everything, besides the data, that the result depends on.
        resume: "no" starts a run in `out`, "must" continues the one there, "auto" does what fits.
        force: Replace an earlier run in `out`; not with `resume`.
        take_over: Train in `out` in place of the process that works there, which then stops.
        loader_options: Where batches are made and how shards are read.
        validation: When the run validates, and when it ends for want of improvement.
        saving: When checkpoints are written, and how many are kept.
        debugging: Options to try out the run.
        cuda_graphs: Let torch.compile record CUDA graphs; GPU only.
        hang_seconds: Time without progress after which the watchdog names the stuck process and stops the
            run.

    Raises:
        UsageError: `resume` is another word, or `hang_seconds` is not above 0.
    """

    data: str | Path
    out: Path
    recipe: Recipe
    resume: Resume = "no"
    force: bool = False
    take_over: bool = False
    loader_options: LoaderOptions = field(default_factory=LoaderOptions)
    validation: Validation = field(default_factory=Validation)
    saving: Saving = field(default_factory=Saving)
    debugging: Debugging = field(default_factory=Debugging)
    cuda_graphs: bool = False
    hang_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_record(self, hang_seconds=POSITIVE)

    def validates(self, dataset: Dataset) -> bool:
        """Whether the run validates on this dataset: by default, where that has a split "val"."""
        return self.validation.enabled and "val" in dataset.manifest.splits


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        progress: Finished epochs and steps, and the best validation top-1.
        ending: "finished", or "stopped" after a signal; a stopped run can be continued.
        line: The ending as one line for the user.
    """

    progress: Progress
    ending: Ending
    line: str

    def __post_init__(self) -> None:
        check_record(self)
