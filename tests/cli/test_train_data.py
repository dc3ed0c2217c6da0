"""`alexnet-train`'s data options: sources and caches, damaged samples, checksums; `alexnet-bench`."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist
from click.testing import CliRunner
from helpers.buckets import upload

from cli.bench import main as bench
from cli.common.options import Size
from cli.train import main as train
from pipeline import Dataset
from pipeline.dataset.index import parse_index
from pipeline.loader.order import TrainingOrder
from pipeline.loader.placement import has_dali
from pipeline.seeds import derive_seed
from trainer import load_recipe

TINY = [
    *("--recipe", "demo", "--set", "crop=64", "--set", "width=0.1"),
    *("--set", "epochs=1", "--set", "batch_size=30"),
]
COMMAND = [sys.executable, "-c", "from cli.train import main; main()"]


def invoke(*arguments):
    return CliRunner().invoke(train, [str(a) for a in arguments])


def metrics(out):
    """The only row of a run's metrics.jsonl."""
    return json.loads((out / "metrics.jsonl").read_text())


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    return Dataset.open(shutil.copytree(tiny_dataset.root, tmp_path / "copy"))


@pytest.fixture(scope="module")
def plain(tiny_dataset, tmp_path_factory):
    """Folder and command result of a run with default data options."""
    out = tmp_path_factory.mktemp("plain") / "run"
    result = invoke(tiny_dataset.root, *TINY, "--cpus", 1, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.mark.parametrize("how", ["cache", "no-mmap", pytest.param("dali", marks=pytest.mark.dali), "bucket"])
def test_how_the_data_comes_changes_nothing(request, plain, tiny_dataset, tmp_path, how):
    data, out = tiny_dataset.root, tmp_path / "run"
    options = {
        "cache": ("--cache", tmp_path / "cache", "--cache-limit", "1G", "--threads", 1),
        "no-mmap": ("--no-mmap", "--decode-device", "auto"),
        "dali": ("--backend", "dali"),
        "bucket": ("--verify-shards",),
    }
    if how == "bucket":
        data = f"{request.getfixturevalue('s3')}/set"
        upload(tiny_dataset.root, data)
    result = invoke(data, *TINY, "--cpus", 1, "--out", out, *options[how])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("for the first batch") == (how in ("cache", "bucket"))
    for name in ("train_loss", "val_loss"):
        assert metrics(out)[name] == metrics(plain[0])[name]
    assert len(list(tmp_path.glob("cache/**/*.tar"))) == (3 if how == "cache" else 0)
    assert json.loads((out / "run.json").read_text())["dataset"] == str(data)


def test_the_log_says_how_long_data_was_waited_for(plain):
    out, result = plain
    assert 0 <= metrics(out)["data_wait"] <= 1
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("epoch")] == ["wait"]
    assert all("%" in line.removesuffix("best").split()[-1] for line in lines if "/1 " in line)


@pytest.mark.no_dali
def test_bench_prints_the_parts_and_leaves_nothing(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.training.benchmark.SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(bench, [str(tiny_dataset.root), *TINY, "--cpus", "1"])
    assert result.exit_code == 0, result.output
    for part in ("loader (threads)", "model", "together", "images/s", "cores", "decode ms"):
        assert part in result.stdout
    assert ("loader (dali)" in result.stdout) == has_dali()
    refused = CliRunner().invoke(bench, [str(tiny_dataset.root), *TINY, "--cpus", "1", "--cuda-graphs"])
    assert (refused.exit_code, "--cuda-graphs needs GPUs" in refused.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()


def damage(dataset, rank, world_size):
    """Overwrite the first sample that a rank reads in the first epoch; return what the error says of it."""
    seed = derive_seed(load_recipe("demo").seed, "data")
    sizes = [shard.samples for shard in dataset.shards("train")]
    first = TrainingOrder(sizes, seed, 0, 30, rank=rank, world_size=world_size).batch(0)
    shard, sample = int(first.shards[0]), int(first.samples[0])
    tar, index = (paths("train")[shard] for paths in (dataset.tars, dataset.indexes))
    name, offset, size = parse_index(index.read_bytes())[sample]["jpg"]
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(16))
    return f"{tar}: the sample {name.removesuffix('.jpg')} (bytes {offset:,} to {offset + size:,})"


def error_in(stderr):
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_sample_gone_bad_stops_with_its_name(copy, tmp_path):
    sample = damage(copy, 0, 1)
    result = invoke(copy.root, *TINY, "--cpus", 1, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert sample in error_in(result.stderr)
    assert f"`alexnet-prep verify {copy.url}`" in result.stderr


@pytest.mark.usefixtures("quick_workers")
def test_a_sample_gone_bad_stops_every_process_with_its_name(copy, tmp_path):
    sample = damage(copy, 1, 2)
    result = invoke(copy.root, *TINY, "--cpus", 2, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert sample in error_in(result.stderr)


def environment(rank, world_size):
    """Environment of a process started by srun, without torch's launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return ranks | sizes | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}


def test_without_a_launcher_every_process_names_the_sample(copy, tmp_path):
    """The first process holds the store that the others read: it stays until they have the error."""
    sample = damage(copy, 0, 2)
    arguments = [str(copy.root), *TINY, "--cpus", "2", "--out", str(tmp_path / "run")]
    shared = os.environ | environment(0, 2)
    processes = [
        subprocess.Popen(
            [*COMMAND, *arguments],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    lines = [error_in(process.communicate(timeout=150)[1]) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert lines[0] == lines[1]
    assert sample in lines[0]


@pytest.mark.parametrize("launched_outside", [False, True])
def test_checksums_are_compared_before_anything_starts(copy, tmp_path, monkeypatch, launched_outside):
    tar = copy.tars("val")[0]
    raw = bytearray(tar.read_bytes())
    raw[-3000] ^= 1
    tar.write_bytes(raw)
    monkeypatch.setattr("faulthandler.enable", lambda **_: None)  # as torch does; it needs a real stderr
    for name, value in environment(0, 1).items() if launched_outside else ():
        monkeypatch.setenv(name, value)
    result = invoke(copy.root, *TINY, "--cpus", 1, "--out", tmp_path / "run", "--verify-shards")
    if dist.is_initialized():  # the process would end now
        dist.destroy_process_group()
    assert result.exit_code == 1
    assert "1 of 3 shards do not match the manifest's checksums: val/val-000000.tar" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cache-limit", "10G"], "--cache-limit needs --cache"),
        (["--cache", "/tmp/x", "--cache-limit", "lots"], "'lots' is not a size; give bytes, such as 200G"),
        (["--decode-device", "gpu"], "--decode-device gpu, but these are CPU processes"),
        (["--threads", "0"], "0 is not in the range x>=1"),
        (["--checkpoint-steps", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes_exit_2(tiny_dataset, tmp_path, options, words):
    result = invoke(tiny_dataset.root, *TINY, "--cpus", 1, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("2k", 2000), ("1.5 GB", 1_500_000_000), ("3T", 3 * 10**12)]
)
def test_sizes(text, number):
    assert Size().convert(text, None, None) == number
