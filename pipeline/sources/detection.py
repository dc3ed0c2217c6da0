"""Read a source: list what lies in it, find its splits and labels, and build a `Source`."""

from pathlib import Path

from pipeline.errors import UsageError
from pipeline.sources.base import AS_FOUND, IMAGE_SUFFIXES, Source, SourceOptions
from pipeline.sources.build import build_source
from pipeline.sources.labeling import label
from pipeline.sources.opening import PARQUET, TARS, ZIP
from pipeline.sources.parts import parts_of
from pipeline.sources.tree import read_tree
from pipeline.storage.base import Store
from pipeline.storage.open import open_store


def read_source(root: str | Path, options: SourceOptions = AS_FOUND) -> Source:
    """List a source's images and build a `Source` from them; no image is decoded.

    Args:
        root: A local folder, one in a bucket (`s3://…`, `gs://…`), or one archive or Parquet file.
        options: How the source is read.

    Raises:
        UsageError: Unknown layout; no such folder; no images; splits or labels that are missing or ambiguous;
            unreadable or damaged files; see also `build_source`.
        RunError: A file of the source cannot be read.
    """
    try:
        store, only = _open(root)
        tree = read_tree(store, only, options.max_bad)
        if tree.tables and not (tree.folders or tree.labeled):
            raise UsageError(next(iter(tree.tables.values())))
        listing = label(tree, parts_of(tree, options.layout, options.splits), options)
    except OSError as error:
        what, reason = error.filename or root, error.strerror or error
        raise UsageError(f"cannot read {what}: {reason}; restore it or check its permissions") from error
    return build_source(store.url, listing, options)


def _open(root: str | Path) -> tuple[Store, str | None]:
    """Return the folder of a source, and the name of its one file where that is the source."""
    store = open_store(root)
    if store.is_folder():
        return store, None
    above, slash, name = store.url.rstrip("/").rpartition("/")
    if name.lower().endswith((*TARS, ZIP, PARQUET)):
        parent = open_store(above or slash or ".")
        if parent.is_file(name):
            return parent, name
    is_image = Path(name).suffix.lower() in IMAGE_SUFFIXES
    found = (
        ("it is one image" if is_image else "it is a file")
        if store.local and store.local.exists()
        else "it does not exist"
    )
    raise UsageError(f"source {root}: {found}; name the folder that holds the data, or one archive")
