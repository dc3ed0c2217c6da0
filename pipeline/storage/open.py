"""Open a store by its address: a path, or PROTOCOL://BUCKET/PREFIX."""

from pathlib import Path

from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore


def open_store(url: str | Path | Store) -> Store:
    """Open a folder by its path or its PROTOCOL://BUCKET/PREFIX; an open one is given back.

    Raises:
        UsageError: a protocol that fsspec does not know, or whose package is not installed.
    """
    if isinstance(url, Store):
        return url
    text = str(url)
    if "://" not in text:
        return LocalStore(text)
    protocol, _, rest = text.partition("://")
    if protocol == "file":
        return LocalStore("/" + rest.lstrip("/"))
    from pipeline.storage.remote import RemoteStore

    return RemoteStore(text)
