"""Runs read back from what they left."""

from pathlib import Path

import pytest

from tests.trainer.report.made_runs import rising, write_run
from trainer.errors import UserError
from trainer.report.runs import read_run, read_runs


def test_runs_are_found_however_deep_and_each_once(tmp_path: Path):
    first, second = write_run(tmp_path / "sweeps" / "a", rising(1.0, 0.5)), write_run(tmp_path / "b", rising(1.0, 0.5))
    write_run(first / "earlier-1", rising(1.0, 0.5))
    write_run(first / "checkpoints" / "x", rising(1.0, 0.5))
    (tmp_path / "link").symlink_to(second)
    assert [run.folder for run in read_runs([tmp_path, second])] == [second.resolve(), first.resolve()]


def test_a_place_without_a_run_is_an_error_that_says_what_a_run_is(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"no run there: give run directories \(with metrics.jsonl and config.yaml\)"):
            read_runs([place])


def test_a_run_comes_to_its_last_evaluation_and_to_the_mean_of_its_last_steps(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", [{"step": 0, "eval/zeroshot/top1": 0.1}, *rising(0.8, 0.5)]))
    assert run.final("eval/zeroshot/top1", last_steps=2) == 0.5
    assert run.final("routing/success/text", last_steps=2) == pytest.approx((0.6 + 0.8) / 2)
    assert run.final("routing/success/text", last_steps=100) == pytest.approx(0.5)
    assert run.final("train/loss", last_steps=2) is None
    assert run.metrics() == ["eval/zeroshot/top1", "routing/success/text"]


def test_nulls_and_lines_that_were_cut_off_are_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": 3.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
    run = read_run(folder)
    assert run.curve("train/loss") == ([2], [3.0])
    assert run.step == 2
    assert not run.is_finished
