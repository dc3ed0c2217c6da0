"""`metrics.jsonl`: one line per epoch, read and written whole."""

from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes
from trainer.runs.records import EpochMetrics

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[EpochMetrics]:
    """Read the rows of metrics.jsonl in order; an empty list where there is no such file.

    Raises:
        UsageError: The file is damaged.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    try:
        return msgspec.json.Decoder(EpochMetrics).decode_lines(path.read_bytes())
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: damaged, or written by another release ({error})") from error


def add_metrics(folder: Path, row: EpochMetrics) -> None:
    """Append an epoch's row; rows of this and later epochs, left by a killed run, are removed."""
    rows = [old for old in read_metrics(folder) if old.epoch < row.epoch] + [row]
    write_bytes(folder / METRICS_FILE, msgspec.json.Encoder().encode_lines(rows))
