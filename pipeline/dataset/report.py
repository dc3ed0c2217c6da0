"""`report.csv`: a row for each image that was skipped or repaired."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

REPORT = "report.csv"


@dataclass(frozen=True)
class ReportRow:
    """A row of report.csv: which image was skipped or repaired, and why."""

    path: str
    reason: str
    action: str


def read_report(out: str | Path | Store) -> list[dict[str, str]]:
    """Rows of a dataset's `report.csv`: path, reason and action ("skipped" or "repaired")."""
    text = open_store(out).read(ByteRange(REPORT)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def report_csv(report_rows: list[ReportRow]) -> bytes:
    """`report.csv` of these incidents, sorted by path."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "reason", "action"))
    rows.writerows((i.path, i.reason, i.action) for i in sorted(report_rows, key=lambda i: i.path))
    return text.getvalue().encode("utf-8", "surrogateescape")
