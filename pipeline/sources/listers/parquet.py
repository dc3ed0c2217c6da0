"""Lister of Parquet files in the form of the Hugging Face hub's image datasets, such as ImageNet.

A file's split is in its name or its folders' names (`data/validation-00000-of-00014.parquet`,
`default/train/0000.parquet`); a file that names no split is training data. `parquet_file` beside this module
reads the columns; `pipeline.sources.labelers.labels` turns labels into classes.

An image's name is the last part of `image.path`, without the `_WNID` that the hub appends to ImageNet's file
names (`n01440764_10026_n01440764.JPEG` becomes `n01440764_10026.JPEG`). An image without a path is named by
the Parquet file's stem and the row (`train-00000-of-00294-000012`). A null image counts as an empty file.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from pipeline.errors import UsageError
from pipeline.sources.base import UNKNOWN, Container, Listing
from pipeline.sources.labelers.labels import Found, plain_name, to_listing, wnid_in
from pipeline.sources.listers.hub import look_for, split_of
from pipeline.sources.listers.parquet_file import class_label, columns_of, leaf, opened
from pipeline.storage.base import Store

SUFFIX = ".parquet"
# Rows that are checked for embedded images.
_FIRST_LOOK = 16
# Rows of label and path read at a time.
_ROWS = 2**14
# In a bucket, requesting a file's few byte ranges takes longer than transferring them.
_FILES_AT_ONCE = 8


def detect(store: Store) -> bool:
    """Whether there are Parquet files; beside folders of images, the first one must have an image column."""
    first, images = look_for(store, _is_parquet)
    return first is not None and (not images or _has_images(store, first))


def list_samples(store: Store) -> Listing:
    """List the rows of every Parquet file; the images' bytes are not read.

    Raises:
        UsageError: A file that is damaged, lacks columns or has paths instead of images; files whose
            ClassLabels differ; for labels see `pipeline.sources.labelers.labels.to_listing`.
        RunError: A file cannot be read.
    """
    containers = tuple(Container(f.path, f.size) for f in store.walk()[0] if _is_parquet(f.path))
    _check_embedded(store, containers)
    found: dict[str, list[Found]] = {}
    names: tuple[str, ...] | None = None
    named = ""  # first file that names its labels
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        parts = pool.map(partial(_read_rows, store), range(len(containers)), containers)
        for container, (rows, listed) in zip(containers, parts, strict=True):
            found.setdefault(split_of(container.path), []).extend(rows)
            if names is None:
                names, named = listed, container.path
            elif listed not in (None, names):
                raise UsageError(
                    f"source {store}: {named} and {container.path} name their labels differently; "
                    "keep the files of one dataset"
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return to_listing(store, "parquet", found, containers, names=names)


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(SUFFIX)


def _has_images(store: Store, path: str) -> bool:
    container = Container(path, store.size(path))
    with suppress(UsageError), opened(store, container, in_order=False) as parquet:
        columns_of(parquet.schema_arrow, path)
        return True
    return False


def _check_embedded(store: Store, containers: tuple[Container, ...]) -> None:
    """Refuse paths instead of images in the first file: an export has the same in all of its files."""
    for container in containers[:1]:
        url = store.url_of(container.path)
        with opened(store, container, in_order=True) as parquet:
            image = columns_of(parquet.schema_arrow, url).image
            first = next(parquet.iter_batches(_FIRST_LOOK, columns=[image], use_threads=False), None)
            if first and leaf(first, image).null_count == first.num_rows:
                raise UsageError(
                    f"{url}: it has paths instead of images ({image} is null in its first {first.num_rows} "
                    "rows); export it again with the images embedded"
                )


def _read_rows(store: Store, number: int, container: Container) -> tuple[list[Found], tuple[str, ...] | None]:
    """Return a file's rows, and the names of its ClassLabel or None."""
    url = store.url_of(container.path)
    split = split_of(container.path)
    stem = container.path.rpartition("/")[2][: -len(SUFFIX)].replace(".", "_")
    found: list[Found] = []
    with opened(store, container, in_order=False) as parquet:
        columns = columns_of(parquet.schema_arrow, url)
        wanted = [column for column in (columns.label, columns.path) if column]
        for batch in parquet.iter_batches(_ROWS, columns=wanted):
            labels = batch.column(columns.label).to_pylist()
            paths = leaf(batch, columns.path).to_pylist() if columns.path else [None] * len(labels)
            for label, path in zip(labels, paths, strict=True):
                given = (path or "").replace("\\", "/").rpartition("/")[2]
                name = plain_name(given) or f"{stem}-{len(found):06d}"
                found.append(Found(name, label, wnid_in(given, split), UNKNOWN, number, len(found)))
        return found, class_label(parquet.schema_arrow, columns.label, url)
