"""The learning rate against its formulas."""

import math

import pytest

from trainer.config.checks import check_schedule
from trainer.config.schema import ScheduleConfig
from trainer.errors import UserError
from trainer.training.schedule import learning_rate

STEPS = 100


@pytest.mark.parametrize("kind", ["cosine", "rsqrt"])
def test_warm_up_is_linear_and_reaches_the_peak(kind: str):
    config = ScheduleConfig(kind=kind, warmup_steps=10)
    rates = [learning_rate(config, 2.0, step, STEPS) for step in range(10)]
    assert rates == pytest.approx([0.2 * (step + 1) for step in range(10)])


def test_cosine_falls_from_the_peak_to_its_final_factor():
    config = ScheduleConfig(kind="cosine", warmup_steps=20, final_factor=0.1)
    assert learning_rate(config, 3.0, 20, STEPS) == pytest.approx(3.0)
    assert learning_rate(config, 3.0, 60, STEPS) == pytest.approx(3.0 * 0.55)
    assert learning_rate(config, 3.0, STEPS, STEPS) == pytest.approx(0.3)
    assert learning_rate(config, 3.0, 10 * STEPS, STEPS) == pytest.approx(0.3)


def test_rsqrt_falls_with_the_square_root_and_cools_down_to_zero():
    config = ScheduleConfig(kind="rsqrt", warmup_steps=16, cooldown_steps=20)
    assert learning_rate(config, 1.0, 16, STEPS) == pytest.approx(1.0)
    assert learning_rate(config, 1.0, 64, STEPS) == pytest.approx(math.sqrt(16 / 64))
    assert learning_rate(config, 1.0, 90, STEPS) == pytest.approx(math.sqrt(16 / 90) / 2)
    assert learning_rate(config, 1.0, STEPS, STEPS) == 0.0


def test_rsqrt_takes_another_timescale():
    config = ScheduleConfig(kind="rsqrt", warmup_steps=4, timescale=100)
    assert learning_rate(config, 1.0, 304, 1000) == pytest.approx(math.sqrt(100 / 400))


@pytest.mark.parametrize("kind", ["cosine", "rsqrt"])
def test_no_warm_up_starts_at_the_peak(kind: str):
    assert learning_rate(ScheduleConfig(kind=kind, warmup_steps=0), 1.0, 0, STEPS) == pytest.approx(1.0)


def test_a_schedule_that_does_not_fit_the_run_is_refused():
    with pytest.raises(UserError, match=r"do not fit train\.steps=100"):
        check_schedule(ScheduleConfig(kind="rsqrt", warmup_steps=60, cooldown_steps=60), STEPS)
