"""Python imports this at its start where PYTHONPATH names this folder: no process there can import DALI."""

import sys

sys.modules["nvidia.dali"] = None
