"""Read a source: detect its layout, list its images, and build a `Source`."""

from pathlib import Path
from typing import Protocol

from pipeline.arguments import check_word, checked
from pipeline.errors import UsageError
from pipeline.sources.base import Listing, Source, build_source
from pipeline.sources.listers import archives, folders, kaggle, parquet, webdataset
from pipeline.storage.base import Store
from pipeline.storage.open import open_store


class Lister(Protocol):
    """A module of `pipeline.sources.listers`, which reads sources of one layout."""

    def detect(self, store: Store) -> bool:
        """Return whether a folder or bucket has this layout."""

    def list_samples(self, store: Store) -> Listing:
        """List the images of a source with this layout."""


LAYOUTS: dict[str, Lister] = {
    "archives": archives,
    "kaggle": kaggle,
    "parquet": parquet,
    "webdataset": webdataset,
    "folders": folders,  # any folder has this layout, so it must be the last
}
"""Name of a layout, as in `--layout` → its lister; in the order in which "auto" tries them."""


@checked()
def read_source(
    root: str | Path, layout: str = "auto", val_fraction: float | None = None, seed: int = 0
) -> Source:
    """List a source's images and build a `Source` from them; no image is decoded.

    Args:
        root: A local folder, one in a bucket (`s3://…`, `gs://…`), or one tar or Parquet file in such a
            folder, which stands for the folder.
        layout: A key of LAYOUTS, or "auto" to detect the layout.
        val_fraction: Share of each class, in (0, 1), that becomes the "val" split. Only for sources without
            validation images.
        seed: Seed of the choice of validation images.

    Raises:
        UsageError: Unknown layout; no such folder; no images; unreadable, damaged or contradictory files
            (see the modules of `pipeline.sources.listers`); see also `build_source`.
        RunError: A file of the source cannot be read.
    """
    check_word("layout", layout, ("auto", *LAYOUTS))
    try:
        store = _open(root)
        if layout == "auto":
            layout = next(name for name, known in LAYOUTS.items() if known.detect(store))
        listing = LAYOUTS[layout].list_samples(store)
    except OSError as error:
        what, reason = error.filename or root, error.strerror or error
        raise UsageError(f"cannot read {what}: {reason}; restore it or check its permissions") from error
    return build_source(store.url, listing, val_fraction, seed)


def _open(root: str | Path) -> Store:
    store = open_store(root)
    if store.is_folder():
        return store
    above, slash, name = store.url.rstrip("/").rpartition("/")
    if name.endswith((".tar", ".parquet")):  # a file of the source instead of its folder
        parent = open_store(above or slash or ".")
        if parent.is_file(name):
            return parent
    found = "it is a file" if store.local and store.local.exists() else "it does not exist"
    raise UsageError(f"source {root}: {found}; name the folder that holds the data")
