"""Kill a job at each of its file operations in turn.

    python -m helpers.crashing SOURCE FOLDER

For n = 0, 1, … a job prepares SOURCE in FOLDER/n in a child process that kills itself at its n-th fsync,
rename or removal, until a child runs to its end. Prints the number of jobs; the last one was not killed.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from helpers.folders import SIZE
from helpers.inline import INLINE
from pipeline.sharding.job import prepare
from pipeline.sharding.plan import Options
from pipeline.sources.detection import read_source

OPTIONS = Options(size=SIZE, drop_duplicates=True)


def die_at(number):
    """Make this process kill itself at its `number`-th file operation from now on."""
    numbers = count()

    def dying(call):
        def wrapper(*args, **kwargs):
            if next(numbers) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in ("fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


def main(source, folder):
    listed = read_source(source)
    for number in count():
        child = os.fork()
        if child == 0:
            die_at(number)
            prepare(listed, folder / str(number), OPTIONS, executor=INLINE, max_bad=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            print(number + 1)
            return
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"job {number} ended with status {status}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
