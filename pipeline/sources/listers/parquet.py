"""Lister of Parquet files in the form of the Hugging Face hub's image datasets, such as ImageNet.

`parquet_file` beside this module reads the columns. An image's name is the last part of `image.path`; an
image without a path is named by the Parquet file's stem and the row (`train-00000-of-00294-000012`). A null
image counts as an empty file. A Parquet file without a column of images is a table, which may hold labels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pipeline.errors import UsageError
from pipeline.sources.base import UNKNOWN, Container, Image
from pipeline.sources.listers.parquet_file import class_label, columns_of, has_images, leaf, opened
from pipeline.sources.opening import PARQUET
from pipeline.storage.base import File, Store

# Rows that are checked for embedded images.
_FIRST_LOOK = 16
# Rows of label and path read at a time.
_ROWS = 2**14
# In a bucket, requesting a file's few byte ranges takes longer than transferring them.
_FILES_AT_ONCE = 8


@dataclass
class ParquetFiles:
    """Content of a source's Parquet files.

    Attributes:
        labeled: Path of a file → its images.
        containers: The files with images, in the order of their numbers.
        names: Class names by label from the files' metadata, or None.
        others: Path of a file without images → why it was read as none.
    """

    labeled: dict[str, list[Image]] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    others: dict[str, str] = field(default_factory=dict)


def read_files(store: Store, files: Sequence[File], first: int) -> ParquetFiles:
    """List the rows of Parquet files; the images' bytes are not read.

    Args:
        store: The source.
        files: The Parquet files.
        first: Number of the first container.

    Raises:
        UsageError: A file that is damaged, lacks a label column or has paths instead of images; files whose
            ClassLabels differ.
        RunError: A file cannot be read.
    """
    found = ParquetFiles()
    named = ""  # first file that names its labels
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        for file, lacking in zip(files, pool.map(partial(_without_images, store), files), strict=True):
            if lacking:
                found.others[file.path] = lacking
            else:
                found.containers.append(Container(*file))
        _check_embedded(store, found.containers)
        numbers = range(first, first + len(found.containers))
        parts = pool.map(partial(_read_rows, store), numbers, found.containers)
        for container, (rows, listed) in zip(found.containers, parts, strict=True):
            found.labeled[container.path] = rows
            if found.names is None:
                found.names, named = listed, container.path
            elif listed not in (None, found.names):
                raise UsageError(
                    f"source {store}: {named} and {container.path} name their labels differently; "
                    "keep the files of one dataset"
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _without_images(store: Store, file: File) -> str:
    """Return why a Parquet file has no column of images; "" if it has one."""
    with opened(store, Container(*file), in_order=False) as parquet:
        if has_images(parquet.schema_arrow):
            return ""
        try:
            columns_of(parquet.schema_arrow, store.url_of(file.path))
        except UsageError as error:
            return str(error)
    return ""


def _check_embedded(store: Store, containers: Sequence[Container]) -> None:
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


def _read_rows(store: Store, number: int, container: Container) -> tuple[list[Image], tuple[str, ...] | None]:
    """Return a file's rows, and the names of its ClassLabel or None."""
    url = store.url_of(container.path)
    stem = container.path.rpartition("/")[2][: -len(PARQUET)].replace(".", "_")
    found: list[Image] = []
    with opened(store, container, in_order=False) as parquet:
        columns = columns_of(parquet.schema_arrow, url)
        wanted = [column for column in (columns.label, columns.path) if column]
        for batch in parquet.iter_batches(_ROWS, columns=wanted):
            labels = batch.column(columns.label).to_pylist()
            paths = leaf(batch, columns.path).to_pylist() if columns.path else [None] * len(labels)
            for label, path in zip(labels, paths, strict=True):
                given = (path or "").replace("\\", "/").rpartition("/")[2]
                name = given or f"{stem}-{len(found):06d}"
                found.append(Image(name, UNKNOWN, number, len(found), label))
        return found, class_label(parquet.schema_arrow, columns.label, url)
