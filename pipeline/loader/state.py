"""A loader's place in its data, as part of a checkpoint."""

import base64
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import UsageError


@dataclass(frozen=True)
class Position:
    """Batches given of an epoch, what they belong to, and DALI's own state after the last of them.

    Attributes:
        content: what decides which batches there are: dataset, split, samples, global batch, view, seed,
            order, DALI's version. Names and values as text.
        process: what decides who makes them: rank, number of processes, device.
        epoch: counted from 0.
        batch: batches given of it; 0 between two epochs.
        dali: DALI's checkpoint, empty where `batch` starts a pipeline.
    """

    content: dict[str, str]
    process: dict[str, str]
    epoch: int
    batch: int
    dali: bytes = b""

    def to_state(self) -> dict[str, Any]:
        """As a checkpoint holds it: strings, numbers and dicts."""
        return {
            "content": dict(self.content),
            "process": dict(self.process),
            "epoch": self.epoch,
            "batch": self.batch,
            "dali": base64.b64encode(self.dali).decode(),
        }

    def entered_from(self, state: dict[str, Any]) -> tuple["Position", int]:
        """The place at which a loader of this position's content and process goes on from a state.

        Returns:
            The position, and the samples that it leaves out: with other processes than the state's, the
            rest of an epoch that was begun.

        Raises:
            UsageError: the state is of other content, and which.
        """
        saved = _position_of(state)
        if differences := _differences(saved.content, self.content):
            raise UsageError(
                f"the saved place in the data belongs to another run: {differences}; resume with the same "
                "data, recipe and versions"
            )
        where = [{name: text for name, text in p.process.items() if name != "rank"} for p in (saved, self)]
        if saved.batch and where[0] == where[1] and saved.process != self.process:
            raise UsageError(
                f"the saved place in the data is rank {saved.process.get('rank')}'s, this is rank "
                f"{self.process.get('rank')}: each process must be given its own"
            )
        if saved.batch == 0 or saved.process == self.process:
            return replace(saved, process=self.process), 0
        size = int(self.content["global_batch"])
        left_out = int(self.content["samples"]) // size - saved.batch
        return replace(self, epoch=saved.epoch + 1, batch=0, dali=b""), left_out * size


def _position_of(state: dict[str, Any]) -> Position:
    try:
        return Position(**(state | {"dali": base64.b64decode(state["dali"], validate=True)}))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the saved place in the data cannot be read ({type(error).__name__}: {error}); it is of another "
            "version of this toolkit, or damaged"
        ) from error


def _differences(saved: dict[str, str], now: dict[str, str]) -> str:
    return "; ".join(
        f"{name} was {saved.get(name)}, now {now.get(name)}"
        for name in {**now, **saved}
        if saved.get(name) != now.get(name)
    )
