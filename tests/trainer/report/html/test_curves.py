"""Thinned curves: what is left out, and what never is."""

import math
import random

import pytest

from trainer.report.groups import Group
from trainer.report.html.curves import Curves, most_points, rounded, thinned
from trainer.report.runs import RunRecord


def record(values: list[float], metric: str = "train/loss") -> RunRecord:
    run = RunRecord(folder=None, settings={})  # type: ignore[arg-type]
    for step, value in enumerate(values, start=1):
        run.add({"step": step, metric: value if math.isfinite(value) else None})
    return run


def test_a_short_curve_is_whole():
    assert thinned([3.0, 1.0, 2.0], most=3) == [0, 1, 2]


@pytest.mark.parametrize("count", [11, 1000, 100_003])
def test_a_long_one_keeps_its_ends_its_spikes_and_its_gaps(count: int):
    draw = random.Random(count)
    values = [draw.random() for _ in range(count)]
    spike, dip, gap = count // 3, count // 2, count // 2 + 2
    values[spike], values[dip], values[gap] = 50.0, -50.0, math.nan
    kept = thinned(values, most=10)
    assert len(kept) <= 10 + 4 and kept == sorted(set(kept))
    assert {0, spike, dip, gap, count - 1} <= set(kept)


def test_the_more_curves_the_fewer_points_each_within_limits():
    assert most_points(0) == most_points(20) == 1000
    assert 60 < most_points(1000) < most_points(500) < 1000
    assert most_points(10**6) == 60


def test_curves_over_the_same_steps_share_them_and_a_gap_is_null():
    curves, run = Curves(most=10), record([2.0, math.nan, 1.0])
    run.curves["train/lr"] = record([1.0, 1.0, 1.0], "train/lr").curves["train/lr"]
    assert curves.of_run(run, "train/loss") == {"x": 0, "y": [2, None, 1]}
    assert curves.of_run(run, "train/lr") == {"x": 0, "y": [1, 1, 1]}
    assert curves.steps == [[1, 2, 3]] and not curves.is_thinned


def test_the_mean_of_a_setting_is_over_the_steps_that_all_its_runs_have():
    curves = Curves(most=10)
    group = Group({}, [record([2.0, math.nan, 1.0]), record([4.0, 3.0, 1.0])])
    assert curves.of_group(group, "train/loss") == {"x": 0, "y": [3, 1], "spread": [pytest.approx(2**0.5, rel=1e-4), 0]}
    assert curves.steps == [[1, 3]]
    assert curves.of_group(group, "train/lr") is None


def test_numbers_are_as_short_as_a_screen_is_precise():
    assert [rounded(value) for value in (1 / 3, 2.0, 123456.7, 1e-9 / 3, math.inf)] == [0.33333, 2, 123460, 3.3333e-10, None]
