"""What the batch script reads after a crash."""

from pathlib import Path

import pytest

from trainer.training.position import VARIABLE, Position


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the batch script leaves it at the start of a job."""
    path = tmp_path / "position"
    path.write_text("start 0 running\n")
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_the_line_follows_the_run(file: Path):
    position = Position(saved=10, is_first=True)
    assert file.read_text().split() == ["10", "10", "running"]
    position.at(11)
    assert file.read_text().split() == ["11", "10", "running"]
    position.saved(11)
    position.at(12)
    assert file.read_text().split() == ["12", "11", "running"]
    position.stopped(85)
    assert file.read_text().split() == ["12", "11", "85"]
    assert file.read_text().count("\n") == 1


def test_only_the_first_rank_writes(file: Path):
    Position(saved=10, is_first=False).at(11)
    assert file.read_text() == "start 0 running\n"


def test_without_a_batch_script_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    Position(saved=0, is_first=True).at(1)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere" / "position"))
    Position(saved=0, is_first=True).at(1)
