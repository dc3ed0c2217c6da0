"""The learning-rate schedule against the paper's text."""

import math

import pytest

from trainer.optim.lr_schedule import Schedule
from trainer.recipe import Recipe, Stage, load_recipe


def recipe(**values) -> Recipe:
    return Recipe(**{"name": "test", "arch": "alexnet", "epochs": 10, "lr": 0.2} | values)


def test_constant_is_constant():
    schedule = Schedule(recipe(schedule="constant"))
    for error in (0.5, 0.6, 0.7) * 10:
        schedule.end_epoch(error)
    assert {schedule.lr(epoch / 7) for epoch in range(70)} == {0.2}


@pytest.mark.parametrize("kind", ["constant", "plateau", "cosine", "polynomial"])
def test_warm_up_rises_linearly_from_nothing_to_the_rate(kind):
    schedule = Schedule(recipe(schedule=kind, warmup_epochs=2.5))
    assert schedule.lr(0) == 0
    assert schedule.lr(1) == pytest.approx(0.2 / 2.5)
    assert schedule.lr(2) == pytest.approx(0.2 * 2 / 2.5)
    assert schedule.lr(2.5) == pytest.approx(0.2)


def test_cosine_falls_from_the_rate_to_nothing_after_the_warm_up():
    schedule = Schedule(recipe(schedule="cosine", warmup_epochs=2.0))
    assert schedule.lr(2) == pytest.approx(0.2)
    assert schedule.lr(4) == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)  # a quarter: cos 45°
    assert schedule.lr(6) == pytest.approx(0.1)
    assert schedule.lr(10) == pytest.approx(0, abs=1e-12)
    falling = [schedule.lr(2 + k / 10) for k in range(81)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_falls_with_its_power_after_the_warm_up(power):
    schedule = Schedule(recipe(schedule="polynomial", warmup_epochs=2.0, power=power))
    assert schedule.lr(2) == pytest.approx(0.2)
    assert schedule.lr(4) == pytest.approx(0.2 * 0.75**power)
    assert schedule.lr(8) == pytest.approx(0.2 * 0.25**power)
    assert schedule.lr(10) == 0


def test_a_warm_up_as_long_as_the_run_never_divides_by_zero():
    schedule = Schedule(recipe(schedule="cosine", epochs=3, warmup_epochs=3.0))
    assert schedule.lr(2.9) == pytest.approx(0.2 * 2.9 / 3)


def lrs_after(schedule: Schedule, errors: list[float]) -> list[float]:
    """Return the learning rate after each validation error."""
    lrs = []
    for error in errors:
        schedule.end_epoch(error)
        lrs.append(schedule.lr(5))
    return lrs


def test_plateau_divides_by_ten_after_patience_without_improvement():
    schedule = Schedule(recipe(schedule="plateau", plateau_patience=2))
    lrs = lrs_after(schedule, [0.9, 0.8, 0.8, 0.81, 0.7, 0.75, 0.69, 0.7, 0.7])
    #                       best best wait drop  best wait  best wait drop
    assert lrs == pytest.approx([0.2] * 3 + [0.02] * 4 + [0.02, 0.002])


def test_paper_recipe_ends_at_a_thousandth_of_its_rate():
    schedule = Schedule(load_recipe("paper"))
    assert schedule.lr(0) == 0.01
    lrs = lrs_after(schedule, [0.4] * 80)
    assert lrs[-1] == pytest.approx(1e-5)
    assert len({round(math.log10(lr)) for lr in lrs}) == 4


def test_plateaus_memory_survives_a_round_trip():
    errors = [0.9, 0.8, 0.85, 0.81, 0.82, 0.83, 0.7, 0.71, 0.72, 0.73]
    whole = Schedule(recipe(schedule="plateau", plateau_patience=3))
    expected = lrs_after(whole, errors)
    for cut in range(len(errors)):
        first = Schedule(recipe(schedule="plateau", plateau_patience=3))
        lrs_after(first, errors[:cut])
        second = Schedule(recipe(schedule="plateau", plateau_patience=3))
        second.load_state_dict(first.state_dict())
        assert lrs_after(second, errors[cut:]) == expected[cut:]


def test_stages_factors_multiply_the_schedule_and_do_not_accumulate():
    stages = (
        Stage(epoch=2, lr_factor=0.5),
        Stage(epoch=4, lr_factor=0.1),
        Stage(epoch=6, bias_lr_factor=3.0),
    )
    constant = Schedule(recipe(stages=stages))
    assert [constant.lr(e) for e in (0, 1.9, 2, 3.9, 4, 9)] == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.02, 0.02])
    cosine = Schedule(recipe(stages=stages, schedule="cosine"))
    assert cosine.lr(5) == pytest.approx(0.2 * 0.1 * 0.5)
