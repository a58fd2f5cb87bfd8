"""Reading a run that trains, and deletes its older checkpoints, meanwhile."""

from pathlib import Path

import pytest

from trainer.checkpoint import load
from trainer.checkpoint.files import checkpoint_path, delete, record_of, write_marker
from trainer.checkpoint.load import CheckpointDeleted, check_sound, checkpoint_of, newest_sound, reading, take_newest
from trainer.distributed.processes import ALONE
from trainer.errors import UserError


def saved(run_dir: Path, step: int) -> Path:
    checkpoint = checkpoint_path(run_dir, step)
    checkpoint.mkdir(parents=True)
    (checkpoint / "tensors").write_bytes(b"x" * step)
    write_marker(checkpoint, {"tensors": record_of(checkpoint / "tensors")})
    return checkpoint


class Rotation:
    """A run that writes the next checkpoint and deletes the one before whenever somebody is about to read one."""

    def __init__(self, run_dir: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.times = run_dir, times
        self.step = 10
        saved(run_dir, self.step)
        reads = load.damage_among

        def damage_among(checkpoint: Path, *args: object) -> str | None:
            self.turn()
            return reads(checkpoint, *args)

        monkeypatch.setattr(load, "damage_among", damage_among)

    def turn(self) -> None:
        """Once, as long as there are turns left."""
        if self.times:
            self.times -= 1
            saved(self.run_dir, self.step + 10)
            delete(checkpoint_path(self.run_dir, self.step))
            self.step += 10


def sound(checkpoint: Path) -> Path:
    check_sound(checkpoint, ALONE)
    return checkpoint


@pytest.mark.parametrize("times", [0, 1, 3])
def test_the_next_one_is_taken_however_often_one_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, times: int):
    rotation = Rotation(tmp_path, times, monkeypatch)
    assert take_newest(lambda: checkpoint_of(str(tmp_path)), sound) == checkpoint_path(tmp_path, rotation.step)
    assert caplog.text.count("was deleted while it was read") == times
    assert "damaged" not in caplog.text


def test_so_does_a_start_from_the_weights_of_a_run_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    Rotation(tmp_path, 2, monkeypatch)
    assert newest_sound(tmp_path, ALONE) == checkpoint_path(tmp_path, 30)
    assert "damaged" not in caplog.text


def test_one_that_was_named_and_deleted_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Rotation(tmp_path, 1, monkeypatch)
    named = checkpoint_path(tmp_path, 10)
    with pytest.raises(UserError, match=f"checkpoint {named} was deleted while it was read, by its own run"):
        take_newest(lambda: checkpoint_of(str(named)), sound)


def test_the_last_one_that_is_deleted_is_told_as_that(tmp_path: Path):
    checkpoint = saved(tmp_path, 10)

    def use(chosen: Path) -> None:
        delete(checkpoint)
        sound(chosen)

    with pytest.raises(UserError, match="was deleted while it was read"):
        take_newest(lambda: checkpoint_of(str(tmp_path)), use)


def test_one_that_is_damaged_is_no_other_than_before(tmp_path: Path):
    (saved(tmp_path, 10) / "tensors").write_bytes(b"y" * 10)
    with pytest.raises(UserError, match="is damaged") as caught:
        take_newest(lambda: checkpoint_of(str(tmp_path)), sound)
    assert not isinstance(caught.value, CheckpointDeleted)


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_cannot_be_read_is_a_deleted_checkpoint_only_when_that_is_gone(tmp_path: Path, gone: bool):
    checkpoint = saved(tmp_path, 10)
    with pytest.raises(CheckpointDeleted if gone else UserError) as caught, reading(checkpoint):
        if gone:
            delete(checkpoint)
        raise UserError("config.yaml cannot be read")
    assert isinstance(caught.value, CheckpointDeleted) == gone
