"""Fixtures that several test files share."""

import atexit
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline import Dataset, Options, draw_demo, prepare, read_source
from pipeline.loader.placement import has_dali
from trainer.recipe import Recipe

# Shells start what they run in the background with Ctrl-C ignored; the commands under test would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where Python may not write bytecode, each process that tests start would compile 2,000 modules again: more
# than half of its time.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="alexnet-bytecode-")
    Path(sys.pycache_prefix).chmod(0o755)  # for processes of other users
    sys.dont_write_bytecode = False
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)

# No deadlines, because the machine may be busy. In CI the examples are fixed, so that a change does not fail
# on an example that earlier runs never drew.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need DALI where it is not installed."""
    if not has_dali():
        for item in items:
            if item.get_closest_marker("dali"):
                item.add_marker(pytest.mark.skip(reason="DALI is not installed"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images: `imagenet-sample/`, `clothing/` and `hostile/`."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("ALEXNET_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set ALEXNET_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 120 generated images of ten classes: 90 in train and 30 in val. Read-only."""
    folder = tmp_path_factory.mktemp("tiny") / "source"
    assert draw_demo(folder, images=120) == {"train": 90, "val": 30}
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source: Path) -> Dataset:
    """A dataset prepared from `tiny_source`, with images of 72 × 72 pixels. Read-only."""
    folder = tiny_source.parent / "dataset"
    prepare(read_source(tiny_source), folder, Options(size=72))
    return Dataset.open(folder)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A recipe that trains a small network on the tiny dataset for three epochs in seconds."""
    return Recipe(
        name="tiny",
        arch="alexnet_bn",
        epochs=3,
        lr=0.02,
        width=0.05,
        crop=64,
        batch_size=32,
        mean="image",
        compile=False,
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Dataset, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two epochs on the tiny dataset. Read-only."""
    from trainer import DistEnv, TrainJob, train

    folder = tmp_path_factory.mktemp("runs") / "tiny-run"
    train(DistEnv(), TrainJob(tiny_dataset.root, folder, replace(tiny_recipe, epochs=2)))
    return folder


@pytest.fixture(scope="session")
def quick_workers() -> Iterator[None]:
    """Let `launch` fork its processes from a server that has imported the trainer once.

    Each is a process of its own all the same, but starts in no time. The commands that tests run in
    subprocesses spawn theirs, as users' commands do.
    """
    from trainer.distributed import launch

    modules = ("trainer.training.trainer", "trainer.evaluation.evaluate")
    lazy = ("torch._dynamo", "torch.distributed.tensor")  # which DistributedDataParallel imports
    multiprocessing.set_forkserver_preload([*modules, *lazy])
    config = launch.LaunchConfig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            launch, "LaunchConfig", lambda **options: config(**options | {"start_method": "forkserver"})
        )
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server (moto) on the loopback interface, in a child process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, "moto's server exited"
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://BUCKET` URL of a new bucket; environment variables point all processes to the server."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{bucket}"
