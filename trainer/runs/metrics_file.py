"""`metrics.jsonl`: one line per epoch and per validation within one, read and written whole."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes
from trainer.runs.records import MetricsRow

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[MetricsRow]:
    """Read the rows of metrics.jsonl in order; an empty list where there is no such file.

    Raises:
        UsageError: The file is damaged.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    try:
        return msgspec.json.Decoder(MetricsRow).decode_lines(path.read_bytes())
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: damaged, or written by another release ({error})") from error


def add_metrics(folder: Path, row: MetricsRow) -> None:
    """Append a row; rows of this point of the run and of later ones, left by a killed run, are removed."""
    rows = [old for old in read_metrics(folder) if _point(old) < _point(row)] + [row]
    write_bytes(folder / METRICS_FILE, msgspec.json.Encoder().encode_lines(rows))


def best_epoch(rows: Iterable[MetricsRow]) -> MetricsRow | None:
    """Return the row of the epoch whose network is kept as best.pt; None where no epoch was validated."""
    found = [(row.val_top1, row) for row in rows if row.kind == "epoch" and row.val_top1 is not None]
    return max(found, key=lambda pair: pair[0])[1] if found else None  # the first of equal ones


def _point(row: MetricsRow) -> tuple[int, bool]:
    """Where in the run a row stands: an epoch can end with the step after which it was validated."""
    return row.steps, row.kind == "epoch"
