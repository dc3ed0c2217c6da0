"""Jobs on Ray, in a process of their own, that lose a worker or a node while they run.

    python ray_jobs.py worker SOURCE OUT    Ray on this machine; a worker that runs a task is killed
    python ray_jobs.py node SOURCE OUT      a cluster of two nodes; one with running tasks is removed
    python ray_jobs.py error SOURCE OUT     a task raises
    python ray_jobs.py parent SOURCE OUT    Ray on this machine; this process kills itself halfway

Prints what was lost.
"""

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil

from pipeline.executors.ray import RayExecutor
from pipeline.sharding.job import prepare
from pipeline.sharding.plan import Options
from pipeline.sources.detection import read_source

OPTIONS = Options(size=48, shard_samples=3)


def finished(out):
    """Number of finished shards."""
    return len(list((out / ".work" / "results").glob("[!.]*.json")))


def busy_workers(root):
    """Ray's worker processes below process `root` that are running a task."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::_call" in name or name.removeprefix("ray::").removesuffix("()") == "_call":
            found.append(process)
    return found


def when_begun(out, act):
    """In a thread, once two shards are finished: call `act` until it returns something; print that."""

    def watch():
        while finished(out) < 2:
            time.sleep(0.005)
        while not (done := act()):
            time.sleep(0.002)
        print(done, flush=True)

    threading.Thread(target=watch, daemon=True).start()


def kill_worker():
    for process in busy_workers(os.getpid()):
        process.kill()
        return f"killed {process.pid}"
    return None


def refuse(number):
    from pipeline.errors import UsageError

    raise UsageError(f"task {number} refuses")


def main(what, source, out):
    executor = RayExecutor(None, 2)
    if what == "error":
        try:
            list(executor.run(refuse, [7]))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        return
    if what == "worker":
        when_begun(out, kill_worker)
    if what == "parent":
        when_begun(out, partial(os.kill, os.getpid(), signal.SIGKILL))
    if what == "node":
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        executor = RayExecutor(cluster.address)

        def remove():
            cluster.remove_node(node, allow_graceful=False)
            return "removed a node"

        when_begun(out, remove)
    manifest = prepare(read_source(source), out, OPTIONS, executor=executor, max_bad=1)
    print(f"{manifest.samples('train')} images")
    if what == "node":
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
