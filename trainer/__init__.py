"""Models, optimization and runs. Names resolve on first use; reading a recipe imports neither torch nor DALI.

The names and their modules stand in `__init__.pyi`, for type checkers too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
