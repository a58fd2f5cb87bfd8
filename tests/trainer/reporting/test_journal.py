"""metrics.jsonl."""

import json
import math
import resource
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.reporting.journal import Journal


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(path: Path, steps: range) -> None:
    journal = Journal(path, resume_step=None)
    for step in steps:
        journal.write(step, {"train/loss": 1.0 / step})
    journal.close()


def test_each_line_is_one_object_that_starts_with_the_step_and_is_there_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, resume_step=None)
    journal.write(10, {"train/loss": 3.5, "train/lr": 1e-3})
    assert path.read_text() == '{"step": 10, "train/loss": 3.5, "train/lr": 0.001}\n'
    journal.write(20, {"step": 99.0, "train/loss": 3.0})
    assert lines(path)[1] == {"step": 20, "train/loss": 3.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    Journal(path, resume_step=None).write(1, {"train/loss": value})
    assert path.read_text() == '{"step": 1, "train/loss": null}\n'


def test_lists_and_mappings_of_numbers_are_kept_as_they_are(tmp_path):
    path = tmp_path / "loads.jsonl"
    Journal(path, resume_step=None).write(1, {"layer01": {"text": [0.5, math.nan, 1.5]}})
    assert path.read_text() == '{"step": 1, "layer01": {"text": [0.5, null, 1.5]}}\n'


def test_a_resume_drops_the_steps_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 11))
    journal = Journal(path, resume_step=6)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    journal.write(7, {"train/loss": 0.5})
    assert lines(path)[-1] == {"step": 7, "train/loss": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", [b'{"step": 4, "train/lo', b'{"step": 4, "train/loss": 1.0}', b'{"step"', b"\0\0\0\0", b"4"])
def test_a_resume_drops_a_last_line_that_was_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    with path.open("ab") as file:
        file.write(torn)
    Journal(path, resume_step=4).write(5, {})
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 5]


def test_a_resume_without_a_file_starts_one(tmp_path):
    Journal(tmp_path / "metrics.jsonl", resume_step=5).write(6, {})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 6}]


def test_a_file_that_cannot_be_opened_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/metrics\.jsonl.*run\.dir"):
        Journal(tmp_path / "nowhere" / "metrics.jsonl", resume_step=None)


def test_a_full_disk_is_warned_of_once_and_leaves_no_half_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, resume_step=None)
    journal.write(1, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))  # room for a part of the next line
    try:
        journal.write(2, {"train/loss": 2.0})
        journal.write(3, {"train/loss": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    journal.write(4, {"train/loss": 4.0})
    assert [line["step"] for line in lines(path)] == [1, 4]
