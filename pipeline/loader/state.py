"""Position of a loader in its data, for checkpoints."""

import base64
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.errors import UsageError


@dataclass(frozen=True)
class Position:
    """Epoch and batch that a loader has reached, with the settings that the position is valid for.

    Attributes:
        content: Settings that decide which batches there are: dataset, split, samples, global batch, view,
            seed, order, DALI's version. Names and values are text.
        process: Settings of the process that reads them: rank, number of processes, device.
        epoch: Number of the epoch, counted from 0.
        batch: Batches of the epoch yielded so far; 0 between two epochs.
        dali: DALI's checkpoint; empty where `batch` is the first batch of a pipeline.
    """

    content: dict[str, str]
    process: dict[str, str]
    epoch: int
    batch: int
    dali: bytes = b""

    def to_state(self) -> dict[str, Any]:
        """Convert to a dict of strings, numbers and dicts, for a checkpoint."""
        return asdict(self) | {"dali": base64.b64encode(self.dali).decode()}

    def at(self, epoch: int, batch: int = 0) -> "Position":
        """Return this loader's position after `batch` batches of `epoch`, without DALI's checkpoint."""
        return replace(self, epoch=epoch, batch=batch, dali=b"")

    def entered_from(self, state: dict[str, Any]) -> tuple["Position", int]:
        """Return the position at which a loader with this content and process resumes from a saved state.

        Args:
            state: What `to_state` returned.

        Returns:
            The position, and the number of samples that are skipped over all processes: the rest of a
            partly read epoch if the number of processes or the device has changed, else 0.

        Raises:
            UsageError: The state has other content (the message says which), belongs to another rank, or
                cannot be read.
        """
        saved = _position_of(state)
        was, now = saved.content, self.content
        differences = [
            f"{name} was {was.get(name)}, now {now.get(name)}"
            for name in now | was
            if was.get(name) != now.get(name)
        ]
        if differences:
            raise UsageError(
                f"the saved place in the data belongs to another run: {'; '.join(differences)}; resume with "
                "the same data, recipe and versions"
            )
        if saved.batch == 0 or saved.process == self.process:
            return replace(saved, process=self.process), 0
        if saved.process | {"rank": self.process["rank"]} == self.process:
            raise UsageError(
                f"the saved place in the data is rank {saved.process.get('rank')}'s, this is rank "
                f"{self.process['rank']}: each process must be given its own"
            )
        size = int(now["global_batch"])
        return self.at(saved.epoch + 1), (int(now["samples"]) // size - saved.batch) * size


def _position_of(state: dict[str, Any]) -> Position:
    try:
        return Position(**(state | {"dali": base64.b64decode(state["dali"], validate=True)}))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the saved place in the data cannot be read ({type(error).__name__}: {error}); it is of another "
            "version of this toolkit, or damaged"
        ) from error
