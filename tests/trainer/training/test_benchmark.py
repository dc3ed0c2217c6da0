"""The benchmark: measured components, and the advice made from them."""

from dataclasses import replace

import pytest

from pipeline.dataset.manifest import ImageFormat
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.training import benchmark
from trainer.training.benchmark import Timing, advise, measure
from trainer.training.options import TrainJob


@pytest.mark.parametrize("processes", [1, 2])
def test_components_are_measured_and_nothing_is_written(tiny_recipe, tiny_dataset, tmp_path, processes):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, batch_size=20))
    if processes == 1:
        found = measure(DistEnv(), job, seconds=0.2)
    else:
        found = launch(Processes("cpu", 2, ""), measure, job, 0.2)
    exchange = ["exchange"] if processes == 2 else []
    assert [timing.name for timing in found.timings] == ["loader (cpu)", "model", *exchange, "together"]
    for timing in found.timings:
        assert timing.images_per_second > 0
        assert 0 < timing.cores <= 3 * processes
        assert timing.host_mb > 100 * processes
        assert timing.device_mb == 0
    assert found.advice.endswith(".")
    assert not (tmp_path / "run").exists()


def timings(**throughputs):
    names = {"cpu": "loader (cpu)", "hybrid": "loader (hybrid)", "gpu": "loader (gpu)"}
    return [Timing(names.get(name, name), throughput, 1, 1, 0) for name, throughput in throughputs.items()]


def test_the_slowest_component_limits(tiny_recipe, tiny_dataset):
    found = advise(timings(cpu=3000, model=300, together=270), tiny_recipe, tiny_dataset, "cpu", "cpu")
    assert found == (
        "The model limits this machine: all else is at least 10.0 times as fast as it (they share the same "
        "cores), and together they reach 90% of it; `--set compile=true` makes it faster once it has "
        "compiled."
    )


@pytest.mark.parametrize(
    ("throughputs", "placement", "help_"),
    [
        (
            {"cpu": 1000, "hybrid": 5000, "gpu": 2000, "model": 9000},
            "gpu",
            "`--placement hybrid` is 2.5 times",
        ),
        ({"cpu": 1000, "hybrid": 5000, "gpu": 2000, "model": 9000}, "hybrid", "more cores for each process"),
        ({"cpu": 1, "gpu": 9000, "model": 8000, "exchange": 100}, "gpu", "larger global batch"),
        ({"cpu": 1, "gpu": 9000, "model": 8000}, "gpu", "`--set compile=true`"),
    ],
)
def test_the_option_that_helps_is_named(tiny_recipe, tiny_dataset, throughputs, placement, help_):
    found = advise(timings(**throughputs, together=1), tiny_recipe, tiny_dataset, "gpu", placement)
    assert help_ in found
    assert "share the same cores" not in found


def test_a_slow_model_gets_advice_on_what_is_left(tiny_recipe, tiny_dataset, monkeypatch):
    monkeypatch.setattr(benchmark, "cpu_has_bfloat16", lambda: True)

    def advice(**settings):
        recipe = replace(tiny_recipe, **settings)
        return advise(timings(cpu=9, model=1, together=1), recipe, tiny_dataset, "cpu", "cpu")

    assert "precision=bfloat16" in advice(compile=True)
    assert "channels_last=true" in advice(compile=True, precision="bfloat16")
    assert "more cores, or a GPU" in advice(compile=True, precision="bfloat16", channels_last=True)
    monkeypatch.setattr(benchmark, "cpu_has_bfloat16", lambda: False)
    assert "channels_last=true" in advice(compile=True)


def test_large_or_remote_data_gets_advice(tiny_recipe, tiny_dataset):
    def advice(dataset):
        return advise(timings(cpu=1, model=9, together=1), tiny_recipe, dataset, "cpu", "cpu")

    image = ImageFormat(72, "original", None)
    assert "stored at 72 px" in advice(
        replace(tiny_dataset, manifest=replace(tiny_dataset.manifest, image=image))
    )
    assert "`--cache DIR`" in advice(replace(tiny_dataset, url="s3://bucket/set"))


def test_a_component_is_measured_for_about_the_time_asked(monkeypatch):
    steps = []
    timer = benchmark._Timer(DistEnv(), batch_size=10, seconds=0.2)
    clock = iter(range(10**6))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock) * 0.05)
    timing = timer.run("x", lambda: steps.append(1))
    assert len(steps) == 2 + 1 + 4  # warm-up, one to find its duration of 0.05 s, four to measure
    assert timing.images_per_second == pytest.approx(4 * 10 / 0.05)
