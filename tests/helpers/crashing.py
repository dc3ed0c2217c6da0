"""Kill a step of preparation at each of its file operations in turn.

    python -m helpers.crashing task SOURCE START FOLDER     the first shard's task
    python -m helpers.crashing finish SOURCE START FOLDER   the merge of finished shards

START is an output folder before that step. For n = 0, 1, … START is copied to FOLDER/n and the step runs
there in a child process that kills itself at its n-th fsync, rename or removal, until a child runs to its
end. Prints the number of copies; the child of the last one was not killed.
"""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

from helpers.folders import SIZE
from pipeline.sharding.merge import merge
from pipeline.sharding.plan import Options, make_plan
from pipeline.sharding.task import ShardJob, run_task
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store

OPTIONS = Options(size=SIZE, shard_samples=6)


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


def main(step, source, start, folder):
    plan, shards = make_plan(read_source(source), OPTIONS)
    for number in count():
        out = folder / str(number)
        shutil.copytree(start, out)
        child = os.fork()
        if child == 0:
            die_at(number)
            if step == "task":
                job = ShardJob(str(source), str(out), str(out / ".work"))
                run_task(job, open_store(out), plan, shards[0])
            else:
                merge(open_store(out), plan, 1, "run again")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            print(number + 1)
            return
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"copy {number} ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
