"""What is drawn; how it looks is looked at."""

from pathlib import Path

import pytest

from tests.trainer.report.made_runs import write_run
from trainer.report.groups import Group, Statistic
from trainer.report.runs import read_run

pytest.importorskip("matplotlib")


def test_a_curve_is_the_mean_at_the_steps_that_all_runs_recorded(tmp_path: Path):
    from trainer.report.plots import mean_curve

    first = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 2.0}, {"step": 3, "train/loss": None}]
    second = [{"step": 2, "train/loss": 4.0}, {"step": 3, "train/loss": 5.0}]
    without = [{"step": 2, "train/lr": 4.0}]
    runs = [read_run(write_run(tmp_path / str(number), rows)) for number, rows in enumerate((first, second, without))]
    assert mean_curve(Group({}, runs), "train/loss") == {2: Statistic(3.0, pytest.approx(2**0.5), 2)}
    assert mean_curve(Group({}, runs), "train/nothing") == {}
