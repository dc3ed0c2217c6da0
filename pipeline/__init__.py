"""Prepare image datasets as tar shards and load them in batches.

Public names are imported on first use, so that preparing a dataset imports neither torch nor DALI.
`__init__.pyi` lists the names and their modules; `lazy_loader` and type checkers read it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
