"""The benchmark: measured components, and the slowest of them."""

from dataclasses import replace

import pytest

from pipeline.loader.placement import has_dali
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.training import benchmark
from trainer.training.benchmark import Measured, Timing, measure
from trainer.training.options import TrainJob

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.mark.parametrize("processes", [1, 2])
def test_components_are_measured_and_nothing_is_written(tiny_recipe, tiny_dataset, tmp_path, processes):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, batch_size=20))
    if processes == 1:
        found = measure(DistEnv(), job, seconds=0.05)
    else:
        found = launch(Processes("cpu", 2, ""), measure, job, 0.05)
    exchange = ["exchange"] if processes == 2 else []
    # The loader that training uses is the last.
    loaders = ["loader (dali)", "loader (threads)"] if has_dali() else ["loader (threads)"]
    assert [timing.name for timing in found.timings] == [*loaders, "model", *exchange, "together"]
    for timing in found.timings:
        assert timing.images_per_second > 0
        assert 0 < timing.cores <= 3 * processes
        assert timing.host_mb > 100 * processes
        assert timing.device_mb == 0
        assert (timing.loader is None) == (timing.name in ("model", "exchange"))
        assert timing.loader is None or timing.loader.batches >= 2
    assert not (tmp_path / "run").exists()


def test_the_slowest_part_is_one_that_training_uses():
    speeds = {"loader (threads)": 100, "loader (dali)": 9000, "model": 8000, "exchange": 8500, "together": 50}
    timings = [Timing(name, speed, 1.0, 1.0, 0.0) for name, speed in speeds.items()]
    assert Measured("tiny", tuple(timings)).slowest.name == "model"


def test_a_component_is_measured_for_about_the_time_asked(monkeypatch):
    steps = []
    timer = benchmark._Timer(DistEnv(), batch_size=10, seconds=0.2)
    clock = iter(range(10**6))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock) * 0.05)
    timing = timer.run("x", lambda: steps.append(1))
    assert len(steps) == 2 + 1 + 4  # warm-up, one to find its duration of 0.05 s, four to measure
    assert timing.images_per_second == pytest.approx(4 * 10 / 0.05)
