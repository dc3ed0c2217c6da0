"""AlexNet training: models, optimization, runs, evaluation, figures and reports.

Public names are imported on first use, so that reading a recipe imports neither torch nor DALI. They are
listed with their modules in `__init__.pyi`, which type checkers also read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
