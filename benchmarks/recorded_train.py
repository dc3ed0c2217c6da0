"""`alexnet-train` that writes down what its steps saw, for benchmarks/kills.py.

Each process appends a line of JSON for each step that it begins to a file of its own, in the folder that
$RECORDED_TRAIN names: number of the step in the run, steps of an epoch, rank, process id, and the position
and checksum of each image. With $WITHOUT_DROPOUT, the paper's dropout is left out.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

FOLDER, WITHOUT_DROPOUT = "RECORDED_TRAIN", "WITHOUT_DROPOUT"


def _record(folder: Path) -> None:
    from trainer.models.layers import PaperDropout
    from trainer.training.trainer import Trainer

    step = Trainer._step

    def recorded(self: Trainer, timer: Any, number: int, batch: Any) -> None:
        facts = {
            "step": timer.epoch * timer.total + number,
            "epoch_steps": timer.total,
            "rank": self.env.rank,
            "pid": os.getpid(),
            "positions": batch.positions.tolist(),
            "images": [zlib.crc32(image.contiguous().numpy()) for image in batch.images],
        }
        with (folder / f"{os.getpid()}.jsonl").open("ab", buffering=0) as file:
            file.write(json.dumps(facts).encode() + b"\n")
        step(self, timer, number, batch)

    Trainer._step = recorded  # type: ignore[method-assign]
    if WITHOUT_DROPOUT in os.environ:
        PaperDropout.forward = lambda _, x: x  # type: ignore[method-assign]


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that the launcher spawns
    _record(Path(os.environ[FOLDER]))
if __name__ == "__main__":
    from cli.train import main

    main()
