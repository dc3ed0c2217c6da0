"""Reading whatever people have: detect a source's layout, list it, and assemble it."""

from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.source import Listing, Source, assemble
from pipeline.storage.base import Store, open_store

LAYOUTS = {
    "archives": "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as downloaded, with the devkit",
    "kaggle": "Kaggle's tree ILSVRC/Data/CLS-LOC/{train,val} with its CSV of labels",
    "parquet": "Parquet files with image.bytes and label, as the Hugging Face hub has them",
    "webdataset": "tars of pictures with .cls or .json labels",
    "folders": "{train,val|validation,test}/CLASS/* or CLASS/*",
}
"""Layouts in the order in which they are looked for. `pipeline.NAME` has `is_here(store) -> bool` and
`read(store) -> Listing`."""


def read_source(
    root: str | Path, layout: str = "auto", val_fraction: float | None = None, seed: int = 0
) -> Source:
    """List a source.

    Args:
        root: a folder, here or in a bucket (`s3://…`, `gs://…`), or one archive or Parquet file in it.
        layout: a key of LAYOUTS, or "auto" to detect it.
        val_fraction: share of each class that becomes the "val" split where the source has none.
        seed: of that choice.

    Raises:
        UsageError: an unknown layout; nothing there, nothing that is known, or unreadable, damaged or
            contradictory files; see the layouts' modules.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(f"--layout {layout} is unknown; give auto, {', '.join(LAYOUTS)}")
    try:
        store = _open(root)
        if layout == "auto":
            layout = next(name for name in LAYOUTS if name == "folders" or _module(name).is_here(store))
        listing: Listing = _module(layout).read(store)
    except OSError as error:
        what, reason = error.filename or root, error.strerror or error
        raise UsageError(f"cannot read {what}: {reason}; restore it or check its permissions") from error
    return assemble(store.url, listing, val_fraction, seed)


def _module(layout: str) -> Any:
    # pyarrow and scipy are heavy: a source of folders needs neither.
    return import_module(f"pipeline.{layout}")


def _open(root: str | Path) -> Store:
    store = open_store(root)
    if store.is_folder():
        return store
    above, slash, name = store.url.rstrip("/").rpartition("/")
    if name.endswith((".tar", ".parquet")):  # one of the files that make up the source
        parent = open_store(above or slash or ".")
        if parent.is_file(name):
            return parent
    found = "it is a file" if store.local and store.local.exists() else "it does not exist"
    raise UsageError(f"source {root}: {found}; name the folder that holds the data")
