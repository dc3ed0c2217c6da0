"""What a run is asked to do, besides its recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError
from trainer.data import LoaderOptions
from trainer.recipe import Recipe
from trainer.runs.records import Ending, Progress

Resume = Literal["no", "must", "auto"]


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written, besides those at the ends of epochs, and how many stay.

    Attributes:
        steps: updates between two, or None.
        minutes: between two, or None.
        keep: how many of the newest stay; the network of the best validation top-1 stays besides.
    """

    steps: int | None = None
    minutes: float | None = 15.0
    keep: int = 2


@dataclass(frozen=True)
class Debugging:
    """Ways to try a run without making it whole; at most one of the first two.

    Attributes:
        synthetic: train on one batch of noise: what training takes without its data.
        overfit_batch: train on the first batch alone, as it was augmented once: its loss must vanish.
        steps: stop after this many updates of the run, with a checkpoint.
        profile: write a Chrome trace of a few updates to this file.
    """

    synthetic: bool = False
    overfit_batch: bool = False
    steps: int | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        if self.synthetic and self.overfit_batch:
            raise UsageError("--synthetic and --overfit-batch were both given; choose one")

    @property
    def one_batch(self) -> str:
        """What is trained on in place of the data, or ""."""
        return "--synthetic" if self.synthetic else "--overfit-batch" if self.overfit_batch else ""


@dataclass(frozen=True)
class TrainJob:
    """What to train.

    Attributes:
        data: the dataset's folder or address.
        out: the run's folder.
        recipe: what the result depends on, besides the data.
        resume: "must" continues the run in `out`, "auto" does where there is one.
        feeding: how the data comes.
        saving: when checkpoints are written.
        debugging: what is tried.
        cuda_graphs: let the compiler record CUDA graphs.
        hang_seconds: after which a process that keeps the others waiting is named, and the run ended.
    """

    data: str | Path
    out: Path
    recipe: Recipe
    resume: Resume = "no"
    loader_options: LoaderOptions = field(default_factory=LoaderOptions)
    saving: Saving = field(default_factory=Saving)
    debugging: Debugging = field(default_factory=Debugging)
    cuda_graphs: bool = False
    hang_seconds: float = 600.0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        progress: how far it came.
        ending: "finished", or "stopped" where it was asked to and can be continued.
        line: the same in words.
    """

    progress: Progress
    ending: Ending
    line: str
