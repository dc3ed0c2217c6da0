"""Exceptions that users see, and their exit codes.

    ToolkitError            exit code 1
    ├── UsageError          exit code 2: the command or its input is wrong
    │   └── DamageError     a file of the input is truncated or damaged
    └── RunError            exit code 1: the work itself failed

Each message is one line that says what was asked, what was found and what to do.
"""


class ToolkitError(Exception):
    """Base of every error that the commands print as one line instead of a traceback."""

    exit_code = 1


class UsageError(ToolkitError):
    """The command line, the recipe or the input data is not usable as given."""

    exit_code = 2


class DamageError(UsageError):
    """A file of the input is truncated or damaged."""


class RunError(ToolkitError):
    """The job failed while running: a full disk, a dead worker, too many bad images."""
