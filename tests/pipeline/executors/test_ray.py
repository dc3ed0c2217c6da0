import subprocess
import sys
from unittest.mock import MagicMock

import pytest
from helpers import ray_jobs
from helpers.conditions import run
from helpers.folders import place, tree, write_source
from helpers.inline import INLINE

from pipeline import prepare, read_source
from pipeline.errors import UsageError
from pipeline.executors.ray import RayExecutor

TIMEOUT = 200  # seconds; Ray is slow to start


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Source of 120 training images (40 shards) and 12 validation images (4 shards)."""
    return write_source(tmp_path_factory.mktemp("ray") / "source", train=40, val=4)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Checksums of the dataset made of the source here."""
    out = tmp_path_factory.mktemp("whole")
    prepare(read_source(source), out, ray_jobs.OPTIONS, executor=INLINE)
    return tree(out)


def job(what, source, out):
    """Run one of the jobs of ray_jobs.py; return its exit code, its output's lines and its stderr."""
    command = [sys.executable, ray_jobs.__file__, what, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_command_runs_on_ray_to_the_same_bytes(source, whole, tmp_path):
    place(tmp_path / "pipeline" / "__init__.py", b"raise ImportError('from the current folder')")
    words = ["shard", source, "out", "--size", 48, "--shard-samples", 3, "--engine", "ray", "--workers", 2]
    done = run("alexnet-prep", *words, cwd=tmp_path, timeout=TIMEOUT)
    assert (done.code, done.stderr) == (0, "")
    assert tree(tmp_path / "out") == whole


def test_a_connection_of_the_callers_is_used_and_stays(monkeypatch):
    """Ray itself is replaced: starting it takes many seconds."""
    ray = MagicMock()
    ray.is_initialized.return_value = True
    ray.wait.side_effect = lambda pending: (pending[:1], pending[1:])
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert len(list(RayExecutor().run(len, ["x", "y"]))) == 2
    ray.init.assert_not_called()
    ray.shutdown.assert_not_called()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "lost"), [("worker", "killed "), ("node", "removed a node")])
def test_a_lost_worker_or_node_costs_nothing(source, whole, tmp_path, what, lost):
    code, lines, err = job(what, source, tmp_path / "out")
    assert code == 0, err
    assert any(line.startswith(lost) for line in lines)  # Ray prints lines of its own
    assert lines[-1] == "120 images"
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_killed_driver_is_completed_here(source, whole, tmp_path):
    code, _, _ = job("parent", source, tmp_path / "out")
    assert code == -9
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(read_source(source), tmp_path / "out", ray_jobs.OPTIONS, executor=INLINE)
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
def test_an_error_of_a_task_is_the_callers(tmp_path):
    code, lines, err = job("error", tmp_path, tmp_path)
    assert (code, lines) == (0, ["UsageError: task 7 refuses"]), err


def test_no_item_is_no_work():
    assert list(RayExecutor("nowhere:1").run(len, [])) == []


def test_a_cluster_that_does_not_answer_is_one_line():
    with pytest.raises(UsageError, match=r"^cannot connect to Ray at 127\.0\.0\.1:9 \(.*\); start a cluster"):
        list(RayExecutor("127.0.0.1:9").run(len, ["x"]))


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'alexnet-toolkit\[ray\]'"):
        list(RayExecutor().run(len, ["x"]))
