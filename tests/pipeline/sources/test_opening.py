import errno

import pytest

from pipeline.errors import RunError, UsageError
from pipeline.sources.opening import reading


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (FileNotFoundError(2, "No such file"), UsageError, "a.tar: it does not exist any more; restore it"),
        (OSError("bad magic\n number"), UsageError, r"a.tar: no complete tar \(bad magic number\); download"),
        (EOFError("ended"), UsageError, r"a.tar: no complete tar \(ended\); download it again"),
        (OSError(errno.EIO, "Input/output error"), RunError, "cannot read a.tar: Input/output error; run"),
    ],
)
def test_errors_in_reading_are_one_line(error, expected, message):
    with pytest.raises(expected, match=f"^{message}"), reading("a.tar", "tar", EOFError):
        raise error


def test_other_errors_pass():
    with pytest.raises(KeyError), reading("a.tar", "tar", EOFError):
        raise KeyError("a bug")
