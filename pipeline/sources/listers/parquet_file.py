"""Open one Parquet file of images and find its columns.

Its columns are

- `image`, `img` or `jpg`: struct{bytes, path}, or the bytes alone; or flat columns `image.bytes` and
  `image.path`;
- `label`, `labels` or `fine_label`: an integer or a string.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.sources.base import Container
from pipeline.sources.opening import reading
from pipeline.storage.base import Store

_IMAGES = ("image", "img", "jpg")
_LABELS = ("label", "labels", "fine_label")
# Some writers put the whole file into one row group: large columns are read page by page, through a buffer
# of this many bytes.
_BUFFER = 2**22


@dataclass(frozen=True)
class Columns:
    """Dotted paths of the image, path and label columns; `path` is None if the file has no such column."""

    image: str
    path: str | None
    label: str


@contextmanager
def opened(store: Store, container: Container, in_order: bool) -> Iterator[Any]:
    """Open a container as a pyarrow ParquetFile; errors of reading it become a UsageError or RunError.

    Args:
        store: The source.
        container: The Parquet file.
        in_order: True to stream large columns (images) from front to back; False to read small columns
            (labels, paths) whole.

    Raises:
        UsageError: The file is missing or damaged.
        RunError: The file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(store.url_of(container.path), "Parquet file", pa.ArrowException), ExitStack() as stack:
        file: Any = store.local and str(store.local / container.path)
        if file is None:
            file = stack.enter_context(store.open(container.path, read_ahead=in_order))
        parquet = pq.ParquetFile(
            file,
            # With pre_buffer, Arrow keeps all that it has read in memory until the file is closed.
            pre_buffer=not in_order,
            buffer_size=_BUFFER if in_order else 0,
            page_checksum_verification=True,
        )
        yield stack.enter_context(parquet)


def columns_of(schema: Any, url: str) -> Columns:
    """Find the image, path and label columns of a pyarrow schema.

    Args:
        schema: `pyarrow.Schema` of the file.
        url: Path or URL of the file, for messages.

    Raises:
        UsageError: There is no image column or no label column, or labels are neither integers nor strings.
    """
    import pyarrow.types as kinds

    image = next(filter(None, (_image(schema, name) for name in _IMAGES)), None)
    label = next((name for name in _LABELS if name in schema.names), None)
    if image is None or label is None:
        needed = {"image (a struct of bytes and path, or bytes)": image, "label": label}
        missing = " and no column ".join(name for name, column in needed.items() if column is None)
        present = ", ".join(f"{field.name} ({_shown(field.type)})" for field in schema) or "none"
        raise UsageError(
            f"{url}: read as Parquet, but it has no column {missing}; its columns are: {present}; rename "
            "columns, or name another folder"
        )
    kind = schema.field(label).type
    value = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (_is_text(kind) or kinds.is_integer(value)):
        raise UsageError(f"{url}: column {label} is {_shown(kind)}; it must hold integers or strings")
    return Columns(*image, label)


def has_images(schema: Any) -> bool:
    """Whether a pyarrow schema has a column of images."""
    return any(_image(schema, name) for name in _IMAGES)


def leaf(batch: Any, path: str) -> Any:
    """Return the column at a dotted path of a pyarrow record batch; rows whose struct is null are null."""
    import pyarrow.compute as pc

    if path in batch.schema.names:
        return batch.column(path)
    outer, _, inner = path.partition(".")
    return pc.struct_field(batch.column(outer), inner)


def class_label(schema: Any, label: str, url: str) -> tuple[str, ...] | None:
    """Return the class names, by label, from the metadata that Hugging Face's datasets library writes.

    Args:
        schema: `pyarrow.Schema` of the file.
        label: Name of the label column.
        url: Path or URL of the file, for messages.

    Returns:
        The names of the column's ClassLabel, or None if the file has none.

    Raises:
        UsageError: The metadata is damaged.
    """
    stored = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = msgspec.json.decode(stored, type=_Metadata).info.features
        return msgspec.convert(features.get(label, {}), _Feature).names
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{url}: its Hugging Face metadata is damaged ({error}); download it again"
        ) from error


class _Feature(msgspec.Struct):
    names: tuple[str, ...] | None = None


class _Info(msgspec.Struct):
    features: dict[str, Any] = {}


class _Metadata(msgspec.Struct):
    info: _Info = msgspec.field(default_factory=_Info)


def _image(schema: Any, name: str) -> tuple[str, str | None] | None:
    """Return dotted paths of the bytes and of the path of image column `name`; None if it has no bytes."""
    import pyarrow.types as kinds

    flat = {field.name: field.type for field in schema}
    if name in flat and kinds.is_struct(flat[name]):
        inner = flat[name]
        flat |= {f"{name}.{inner.field(k).name}": inner.field(k).type for k in range(inner.num_fields)}
    given = f"{name}.path"
    path = given if given in flat and _is_text(flat[given]) else None
    for column in (f"{name}.bytes", name):
        if column in flat and (kinds.is_binary(flat[column]) or kinds.is_large_binary(flat[column])):
            return column, path
    return None


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    value = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_string(value) or kinds.is_large_string(value))


def _shown(kind: Any) -> str:
    text = " ".join(str(kind).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
