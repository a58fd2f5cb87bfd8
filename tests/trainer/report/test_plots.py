"""What is drawn; how it looks is looked at."""

from pathlib import Path

import pytest

from tests.trainer.report.made_runs import write_run
from trainer.report.groups import Group, Statistic
from trainer.report.runs import read_run

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure


def test_a_curve_is_the_mean_at_the_steps_that_all_runs_recorded(tmp_path: Path):
    from trainer.report.plots import mean_curve

    first = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 2.0}, {"step": 3, "train/loss": None}]
    second = [{"step": 2, "train/loss": 4.0}, {"step": 3, "train/loss": 5.0}]
    without = [{"step": 2, "train/lr": 4.0}]
    runs = [read_run(write_run(tmp_path / str(number), rows)) for number, rows in enumerate((first, second, without))]
    assert mean_curve(Group({}, runs), "train/loss") == {2: Statistic(3.0, pytest.approx(2**0.5), 2)}
    assert mean_curve(Group({}, runs), "train/nothing") == {}


def figure_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[Group], metrics: list[str]) -> Figure:
    """What is drawn, before it is closed."""
    from trainer.report import plots

    drawn: list[Figure] = []
    monkeypatch.setattr(plots.pyplot, "close", drawn.append)
    plots.plot_curves(groups, metrics, tmp_path / "curves.png")
    return drawn[0]


def test_a_setting_has_one_colour_in_all_panels_and_the_whole_legend_is_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dense = read_run(write_run(tmp_path / "dense", [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 1.0}]))
    rows = [{"step": step, "train/loss": 2.0, "routing/success/text": 1.0} for step in (1, 2)]
    sparse = read_run(write_run(tmp_path / "sparse", rows))
    long = {f"router.aux.a_rather_long_name_{number}": number for number in range(8)}
    groups = [Group({"model.name": "dense_tiny", **long}, [dense]), Group({"model.name": "limoe_tiny", **long}, [sparse])]
    figure = figure_of(tmp_path, monkeypatch, groups, ["routing/success/text", "train/loss"])
    success, loss = figure.axes
    assert success.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()
    (legend,) = figure.legends
    assert [handle.get_color() for handle in legend.get_lines()] == [
        line.get_color() for line in (success.lines[0], loss.lines[0])
    ]
    box, all_of_it = legend.get_window_extent(), figure.bbox
    assert all_of_it.x0 <= box.x0 and box.x1 <= all_of_it.x1 and all_of_it.y0 <= box.y0
