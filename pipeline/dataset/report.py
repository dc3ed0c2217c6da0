"""`report.csv`: a row per image that was skipped, repaired or found twice, and per file that was left out."""

import csv
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

REPORT = "report.csv"


@dataclass(frozen=True)
class ReportRow:
    """A row of report.csv.

    Attributes:
        path: path of the image in the source, or of a folder of files that were left out.
        reason: why it was skipped, repaired or left out, or what else has the same bytes; one line.
        action: "skipped", "repaired", "left out", or "kept" for an image that is there twice.
    """

    path: str
    reason: str
    action: str


COLUMNS = [column.name for column in fields(ReportRow)]
"""Names of the columns of report.csv."""


def read_report(out: str | Path | Store) -> list[dict[str, str]]:
    """Read a dataset's `report.csv`.

    Returns:
        The rows, each with the keys path, reason and action.

    Raises:
        FileNotFoundError: there is no report.
    """
    text = open_store(out).read(ByteRange(REPORT)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def report_csv(report_rows: list[ReportRow]) -> bytes:
    """Encode rows as the content of `report.csv`, sorted by path."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, sorted(report_rows, key=lambda row: row.path)))
    return text.getvalue().encode("utf-8", "surrogateescape")
