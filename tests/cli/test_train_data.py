"""`alexnet-train`'s data options: sources and caches, damaged samples, checksums and --bench."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli.common.options import Size
from cli.train import main as train
from pipeline import Dataset
from pipeline.dataset.index import index_path, read_index
from pipeline.loader import order
from pipeline.seeds import derive_seed
from trainer import load_recipe

TINY = [
    *("--recipe", "demo", "--set", "crop=64", "--set", "width=0.1"),
    *("--set", "epochs=2", "--set", "batch_size=30"),
]


def invoke(*arguments):
    return CliRunner().invoke(train, [str(a) for a in arguments])


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["train_loss"], row["val_loss"]) for row in rows]


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


@pytest.mark.parametrize("how", ["cache", "no-mmap", "threads", "bucket"])
def test_how_the_data_comes_changes_nothing(request, plain, tiny_dataset, tmp_path, how):
    data, options = tiny_dataset.root, ("--threads", 1)
    if how == "cache":
        options = ("--cache", tmp_path / "cache", "--cache-limit", "1G")
    elif how == "no-mmap":
        options = ("--no-mmap", "--placement", "cpu", "--verify-shards")
    elif how == "bucket":
        from pipeline.storage.open import open_store

        data, options = f"{request.getfixturevalue('s3')}/set", ("--verify-shards",)
        for path in tiny_dataset.root.rglob("*"):
            if path.is_file():
                name = path.relative_to(tiny_dataset.root).as_posix()
                open_store(data).write(name, path.read_bytes())
    result = invoke(data, *TINY, "--cpus", 1, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert losses(tmp_path / "run") == losses(plain[0])
    if how == "cache":
        assert len(list((tmp_path / "cache").rglob("*.tar"))) == 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dataset"] == str(data)


def test_the_log_says_how_long_data_was_waited_for(plain):
    out, result = plain
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert 0 <= json.loads(line)["data_wait"] <= 1
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("epoch")] == ["wait"]
    assert all("%" in line.removesuffix("best").split()[-1] for line in lines if "/2 " in line)


def test_bench_prints_the_parts_and_leaves_nothing(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.training.benchmark.SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    result = invoke(tiny_dataset.root, *TINY, "--cpus", 1, "--bench")
    assert result.exit_code == 0, result.output
    for part in ("loader (cpu)", "model", "together", "images/s", "cores", "host MB"):
        assert part in result.stdout
    assert "limits this machine" in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_gone_bad_stops_every_process_with_its_name(copy, tmp_path, processes):
    tar = copy.tars("train")[0]
    offset, size, name = read_index(index_path(tar))[3]["jpg"]
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(16))
    command = [sys.executable, "-c", "from cli.train import main; main()", str(copy.root), *TINY]
    done = subprocess.run(
        [*command, "--cpus", str(processes), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tar}: the sample {name.removesuffix('.jpg')} (bytes {offset:,} to {offset + size:,})" in line
    assert f"`alexnet-prep verify {copy.url}`" in line
    assert "Traceback" not in done.stderr


def start_ranks(arguments, count=2, **environment):
    """Start `count` processes as srun does, without torch's launcher; return (stderr, exit code) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"} | environment
    command = [sys.executable, "-c", "from cli.train import main; main()", *map(str, arguments)]
    started = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    return [(process.communicate(timeout=150)[1], process.returncode) for process in started]


@pytest.mark.parametrize("rank", [0, 1])
def test_without_a_launcher_every_process_names_the_sample(copy, tmp_path, rank):
    """The first process holds the store that the others read: it stays until they have the error."""
    shards = copy.shards("train")
    seed = derive_seed(load_recipe("demo").seed, "data")
    share = order.training_share([shard.samples for shard in shards], seed, 0, rank, 2, 15)
    sample = read_index(copy.indexes("train")[share[0].shard])[share[0].first]
    offset, size, name = sample["jpg"]
    tar = copy.tars("train")[share[0].shard]
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(16))
    found = start_ranks([copy.root, *TINY, "--cpus", 2, "--out", tmp_path / "run"])
    lines = []
    for stderr, code in found:
        assert code == 1, stderr
        lines += [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in stderr
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert (
        f"{tar}: the sample {name.removesuffix('.jpg')} (bytes {offset:,} to {offset + size:,})" in lines[0]
    )


def test_without_a_launcher_checksums_are_compared_once_for_all(copy, tmp_path):
    tar = copy.tars("val")[0]
    raw = bytearray(tar.read_bytes())
    raw[-3000] ^= 1
    tar.write_bytes(raw)
    found = start_ranks([copy.root, *TINY, "--cpus", 2, "--out", tmp_path / "run", "--verify-shards"])
    for stderr, code in found:
        assert code == 1, stderr
        assert "1 of 3 shards do not match the manifest's checksums: val/val-000000.tar" in stderr
    assert not (tmp_path / "run").exists()


def test_checksums_are_compared_before_anything_starts(copy, tmp_path):
    tar = copy.tars("val")[0]
    raw = bytearray(tar.read_bytes())
    raw[-3000] ^= 1
    tar.write_bytes(raw)
    result = invoke(copy.root, *TINY, "--cpus", 1, "--out", tmp_path / "run", "--verify-shards")
    assert result.exit_code == 1
    assert "1 of 3 shards do not match the manifest's checksums: val/val-000000.tar" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cache-limit", "10G"], "--cache-limit needs --cache"),
        (["--cache", "/tmp/x", "--cache-limit", "lots"], "'lots' is not a size; give bytes, such as 200G"),
        (["--placement", "gpu"], "--placement gpu makes batches on a GPU, but these are CPU processes"),
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
    ("text", "number"),
    [("7", 7), ("2k", 2000), ("1.5 GB", 1_500_000_000), ("3T", 3 * 10**12), ("9M", 9_000_000)],
)
def test_sizes(text, number):
    assert Size().convert(text, None, None) == number
