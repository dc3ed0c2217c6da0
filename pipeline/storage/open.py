"""Open a store by its path or URL."""

from pathlib import Path

from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore


def open_store(url: str | Path | Store) -> Store:
    """Open a folder on this machine or in a bucket.

    Args:
        url: a path, `file:///PATH`, or PROTOCOL://BUCKET/PREFIX; a `Store` is returned as it is.

    Returns:
        A store. A bucket is contacted only at the first operation on it, which raises UsageError if fsspec
        does not know the protocol or its package is not installed.
    """
    if isinstance(url, Store):
        return url
    text = str(url)
    if text.startswith("file://"):
        text = f"/{text.removeprefix('file://').lstrip('/')}"
    if "://" not in text:
        return LocalStore(text)
    from pipeline.storage.remote import RemoteStore

    return RemoteStore(text)
