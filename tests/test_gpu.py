"""Tests that need a GPU; skipped without one."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.imagenet_files import write_archives
from torch import nn

from cli.bench import main as bench
from cli.eval import main as evaluate
from cli.prep import main as prep
from cli.train import main as train
from pipeline import (
    Dataset,
    EvalView,
    Loader,
    Options,
    Placement,
    TrainView,
    color_noise,
    prepare,
    read_source,
)
from pipeline.errors import RunError
from trainer.distributed.env import DistEnv
from trainer.distributed.rendezvous import gpu_id
from trainer.precision import computing
from trainer.training.progress import MemoryUse, RunningTotals

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(scope="module")
def originals(tiny_source, tmp_path_factory):
    """Dataset of the images of `tiny_dataset` in their original size, which are scaled on loading."""
    folder = tmp_path_factory.mktemp("originals") / "dataset"
    prepare(read_source(tiny_source), folder, Options(size=72, keep_original=True))
    return Dataset.open(folder)


def run(dataset, out, *options, command=train, **settings):
    """Train or measure on one GPU with the demo recipe's settings, smaller; return the command's output."""
    values = {"crop": 64, "width": 0.1, "batch_size": 16, "epochs": 2} | settings
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    to = [] if out is None else ["--out", str(out)]
    arguments = [str(dataset.root), "--recipe", "demo", "--gpus", "1", *to, *sets, *options]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("backend", ["dali", "threads"])
@pytest.mark.parametrize("name", ["center", "ten-crop", "full-resize"])
@pytest.mark.parametrize("stored", ["tiny_dataset", "originals"])
def test_images_made_on_the_gpu_are_close_to_the_cpus(request, stored, name, backend):
    """Chroma upsampling differs a little; a wrong crop or channel order would differ by tens of levels."""
    view, dataset = EvalView(name, 64), request.getfixturevalue(stored)
    with (
        Loader(dataset, "val", view, 8) as cpu,
        Loader(
            dataset, "val", view, 8, backend=backend, placement=Placement(gpu=0), channels_last=True
        ) as gpu,
    ):
        for a, b in zip(cpu, gpu, strict=True):
            assert b.images.is_cuda
            assert a.keys == b.keys
            assert (a.images - b.images.cpu()).abs().mean() < 2


@pytest.mark.parametrize("backend", ["dali", "threads"])
@pytest.mark.parametrize("augmentation", ["paper", "random-resized-crop"])
def test_training_crops_on_the_gpu_are_those_of_the_cpu(tiny_dataset, augmentation, backend):
    noise = color_noise("paper", tiny_dataset.statistics)
    view = TrainView(64, tiny_dataset.statistics.mean, noise=noise, augmentation=augmentation)
    for rank in (0, 1):
        with (
            Loader(tiny_dataset, "train", view, 16, placement=Placement(rank, 2)) as cpu,
            Loader(
                tiny_dataset, "train", view, 16, backend=backend, placement=Placement(rank, 2, 0), half=True
            ) as gpu,
        ):
            for a, b in zip(cpu, gpu, strict=True):
                assert b.images.dtype == torch.float16
                assert a.keys == b.keys
                assert (a.images - b.images.cpu().float()).abs().mean() < 2


def test_a_loader_on_the_gpu_resumes_within_an_epoch(tiny_dataset):
    def make():
        return Loader(tiny_dataset, "train", TrainView(64), 8, placement=Placement(gpu=0))

    with make() as whole:
        batches = []
        for batch in whole:
            batches.append((batch.keys, batch.images.cpu()))
            if len(batches) == 4:
                state = whole.state_dict()
    with make() as second:
        second.load_state_dict(state)
        for (keys, images), batch in zip(batches[4:], second, strict=True):
            assert batch.keys == keys
            assert torch.equal(batch.images.cpu(), images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options", [(), ("--backend", "threads"), ("--backend", "dali", "--decode-device", "cpu")]
)
def test_a_run_trains_and_evaluates_on_the_gpu(tiny_dataset, tmp_path, precision, options):
    out, file = tmp_path / "run", tmp_path / "result.json"
    run(tiny_dataset, out, *options, batch_size=32, precision=precision)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    arguments = [f"{out}/last.pt", "--data", str(tiny_dataset.root), "--cpus", "1", "--json", str(file)]
    assert CliRunner().invoke(evaluate, arguments).exit_code == 0
    metrics = json.loads(file.read_text())["metrics"]
    # Three of thirty images: the CPU decodes slightly differently.
    assert abs(metrics["top1"] - last["val_top1"]) <= 0.1


def test_bench_measures_every_backend(tiny_dataset, monkeypatch):
    monkeypatch.setattr("trainer.training.benchmark.SECONDS", 0.2)
    output = run(tiny_dataset, None, command=bench)
    for part in ("loader (threads)", "loader (dali)", "model", "together", "GPU MB"):
        assert part in output


def test_the_bare_commands_take_imagenet_as_downloaded_to_a_result(shared_data, tmp_path, monkeypatch):
    """`alexnet-prep shard`, `alexnet-train --gpus 2` (1 where there is one), `alexnet-eval` in its folder."""
    write_archives(tmp_path, shared_data / "imagenet-sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALEXNET_DATA", raising=False)
    gpus = min(2, torch.cuda.device_count())
    for command, *arguments in (
        (prep, "shard"),
        (train, "--gpus", str(gpus), "--max-steps", "4"),
        (evaluate,),
    ):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
    assert "run: runs/paper (the newest below runs)" in result.stderr
    assert "34 val images, 10 classes, center" in result.stdout
    assert json.loads(Path("runs/paper/run.json").read_text())["machine"]["processes"] == str(gpus)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ((), {"precision": "float16", "ema_decay": 0.9}),
        ((), {"accumulation_steps": 2, "optimizer": "lars"}),
        ((), {"tf32": "true", "channels_last": "true"}),
        (("--cuda-graphs",), {"compile": "true"}),
    ],
)
def test_every_setting_stops_and_resumes(tiny_dataset, tmp_path, options, settings):
    out = tmp_path / "run"
    for more in (("--max-steps", "7"), ("--resume",)):
        output = run(tiny_dataset, out, *options, *more, **settings)
        assert "torch.compile does not work" not in output
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["steps"] for row in rows] == [5, 10]
    assert json.loads((out / "run.json").read_text())["host"]["gpus"]


def test_losses_are_read_late_and_sums_are_right():
    totals = RunningTotals(DistEnv(kind="gpu"))
    one = torch.tensor(1.0, device="cuda")
    totals.add(2 * one, 3 * one, 8, 1)
    assert totals.peek() is None
    totals.add(4 * one, one, 8, 2)
    assert totals.peek().loss == 2.0
    assert totals.read().loss_sum == 48.0


def test_convolutions_are_exact_unless_tf32_is_asked_for():
    torch.manual_seed(0)
    model, images, device = nn.Conv2d(256, 64, 3), torch.randn(8, 256, 16, 16), torch.device("cuda")
    exact, errors = model.double()(images.double()), {}
    for name in ("float32", "tf32") if torch.cuda.get_device_capability() >= (8, 0) else ("float32",):
        with torch.inference_mode(), computing(name, device):
            found = model.float().to(device)(images.to(device))
        errors[name] = float((found.cpu().double() - exact).abs().max())
    assert errors["float32"] < 1e-5
    assert errors.get("tf32", 1.0) > 10 * errors["float32"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # torch's default


def test_memory_is_torchs_and_the_rest_and_too_little_is_one_line():
    memory = MemoryUse(DistEnv(kind="gpu"))
    held = torch.empty(32 * 10**6, dtype=torch.uint8, device="cuda")
    assert memory.read().mb >= held.nbytes / 1e6
    assert memory.rest_mb > 0  # CUDA's own at least
    with (
        pytest.raises(RunError, match="out of memory; use smaller batches"),
        computing("float32", torch.device("cuda")),
    ):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


def test_every_gpu_has_a_name_of_its_own():
    """By which processes that would share one are found."""
    count = torch.cuda.device_count()
    envs = [DistEnv(k, count, local_rank=k, local_world_size=count, kind="gpu") for k in range(count)]
    assert len({gpu_id(env) for env in envs} - {""}) == count
