"""Files of a source that are no samples: they are counted, shown with an example, and reported."""

from dataclasses import dataclass, field

from pipeline.dataset.report import ReportRow

# Files of one folder that get a row each in report.csv; more of them share one.
_MOST_ROWS = 1000
# Folders and files that systems and tools leave behind, in lower case; names with a leading dot are debris
# too. Synology's @eaDir holds a thumbnail of every image.
_DEBRIS = frozenset(
    [
        "lost+found",
        "thumbs.db",
        "desktop.ini",
        "@eadir",
        "__macosx",
        "#recycle",
        "$recycle.bin",
        "system volume information",
    ]
)


def is_debris(name: str) -> bool:
    """Whether systems and tools leave behind a file or folder of this name, the last part of a path."""
    return name.startswith(".") or name.lower() in _DEBRIS


@dataclass
class _Folder:
    count: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class LeftOut:
    """Files that were left out, by reason and folder.

    Attributes:
        found: Reason, such as "not an image" → folder → its files.
    """

    found: dict[str, dict[str, _Folder]] = field(default_factory=dict)

    def add(self, path: str, reason: str, count: int = 1) -> None:
        """Record that a file, or `count` files below a folder whose path ends with /, is left out."""
        folder, _, name = path.rpartition("/")
        place = self.found.setdefault(reason, {}).setdefault(folder, _Folder())
        place.count += count
        if len(place.names) < _MOST_ROWS:
            place.names.append(name)

    def notes(self) -> list[str]:
        """Return one line for each reason: how many files, and an example."""
        lines = []
        for reason, folders in self.found.items():
            count = sum(place.count for place in folders.values())
            folder, place = next(iter(folders.items()))
            example = f"{folder}/{place.names[0]}".lstrip("/")
            files = f"{count:,} files" if count > 1 else "1 file"
            lines.append(f"left out {files}: {reason} ({'such as ' if count > 1 else ''}{example})")
        return lines

    def rows(self) -> list[ReportRow]:
        """Return the rows for report.csv: one a file, or one a folder that has very many."""
        rows = []
        for reason, folders in self.found.items():
            for folder, place in folders.items():
                if place.count > len(place.names):
                    rows.append(ReportRow(f"{folder}/", f"{reason} ({place.count:,} files)", "left out"))
                else:
                    paths = (f"{folder}/{name}".lstrip("/") for name in place.names)
                    rows += [ReportRow(path, reason, "left out") for path in paths]
        return rows
