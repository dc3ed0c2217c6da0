"""Parquet files as the Hugging Face hub lays image datasets out, ImageNet among them.

A file's split is in its name or its folders' (`data/validation-00000-of-00014.parquet`,
`default/train/0000.parquet`); a file that names none is training data. `parquet_file` beside this module
reads the columns, `pipeline.sources.labelers.labels` turns labels into classes.

An image's name is the last part of `image.path` without the `_WNID` that the hub has put behind ImageNet's
(`n01440764_10026_n01440764.JPEG` is `n01440764_10026.JPEG`); where there is none, the file's stem and the row
(`train-00000-of-00294-000012`). An image that is null counts as an empty file.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.errors import UsageError
from pipeline.sources.base import UNKNOWN, Container, Listing
from pipeline.sources.labelers.labels import Found, Labeled, plain_name, to_listing, wnid_in
from pipeline.sources.listers.hub import look_for, split_of
from pipeline.sources.listers.parquet_file import check_embedded, class_label, columns_of, leaf, opened
from pipeline.storage.base import Store

SUFFIX = ".parquet"
_ROWS = 2**14
# In a bucket, a file's few ranges take longer to ask for than to read.
_FILES_AT_ONCE = 8


def detect(store: Store) -> bool:
    """Whether there are Parquet files; beside folders with images, only such as hold images count."""
    first, images = look_for(store, _is_parquet)
    return first is not None and (not images or _has_images(store, first))


def list_samples(store: Store) -> Listing:
    """List the rows of every Parquet file; the images' bytes are not read.

    Raises:
        UsageError: a file that is damaged, lacks columns or has paths instead of images; files that name
            their labels differently; for labels see `pipeline.sources.labelers.labels.to_listing`.
        RunError: a file cannot be read.
    """
    containers = tuple(Container(f.path, f.size) for f in store.walk()[0] if _is_parquet(f.path))
    _check_embedded(store, containers)
    found: dict[str, list[Found]] = {}
    names: dict[str, tuple[str, ...]] = {}
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        parts = pool.map(partial(_read_rows, store), range(len(containers)), containers)
        for container, (rows, listed) in zip(containers, parts, strict=True):
            found.setdefault(split_of(container.path), []).extend(rows)
            if listed is not None:
                names[container.path] = listed
    finally:
        pool.shutdown(cancel_futures=True)
    return to_listing(store, Labeled("parquet", found, containers, _agreed(store, names)))


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(SUFFIX)


def _has_images(store: Store, path: str) -> bool:
    try:
        with opened(store, Container(path, store.size(path)), in_order=False) as parquet:
            columns_of(parquet.schema_arrow, path)
    except UsageError:
        return False
    return True


def _check_embedded(store: Store, containers: tuple[Container, ...]) -> None:
    """Look into one file for all: an export has images or paths throughout."""
    for container in containers[:1]:
        with opened(store, container, in_order=True) as parquet:
            place = store.url_of(container.path)
            check_embedded(parquet, columns_of(parquet.schema_arrow, place).image, place)


def _read_rows(store: Store, number: int, container: Container) -> tuple[list[Found], tuple[str, ...] | None]:
    """A file's rows, and its ClassLabel's names or None."""
    place = store.url_of(container.path)
    split = split_of(container.path)
    stem = container.path.rpartition("/")[2][: -len(SUFFIX)].replace(".", "_")
    found: list[Found] = []
    with opened(store, container, in_order=False) as parquet:
        columns = columns_of(parquet.schema_arrow, place)
        wanted = [column for column in (columns.label, columns.path) if column]
        for batch in parquet.iter_batches(_ROWS, columns=wanted):
            labels = batch.column(columns.label).to_pylist()
            paths = leaf(batch, columns.path).to_pylist() if columns.path else [None] * len(labels)
            for label, path in zip(labels, paths, strict=True):
                given = (path or "").replace("\\", "/").rpartition("/")[2]
                name = plain_name(given) or f"{stem}-{len(found):06d}"
                found.append(Found(name, label, wnid_in(given, split), UNKNOWN, number, len(found)))
        return found, class_label(parquet.schema_arrow, columns.label, place)


def _agreed(store: Store, names: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The names that every file which has some agrees on."""
    if not names:
        return None
    first, *others = names
    differing = next((path for path in others if names[path] != names[first]), None)
    if differing is not None:
        raise UsageError(
            f"source {store}: {first} and {differing} name their labels differently; "
            "keep the files of one dataset"
        )
    return names[first]
