"""Which checkpoints of a run are kept, and what their marker notices."""

import errno
import hashlib
import json
from pathlib import Path
from typing import NoReturn

import pytest

from trainer.checkpoint.files import (
    BEST,
    PROGRESS,
    FileRecord,
    all_checkpoints,
    checkpoint_path,
    complete_checkpoints,
    damage_among,
    delete_old,
    find_checkpoint,
    point_best_to,
    read_marker,
    record_of,
    sweep_up,
    write_marker,
)
from trainer.errors import UserError


def saved(run_dir: Path, step: int) -> Path:
    checkpoint = checkpoint_path(run_dir, step)
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "state" / "tensors").write_bytes(bytes([step % 256]) * 100)
    write_marker(checkpoint, {"state/tensors": record_of(checkpoint / "state" / "tensors")})
    return checkpoint


def kept(run_dir: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete_checkpoints(run_dir)]


def save_in_turn(run_dir: Path, steps: list[int], keep: int, keep_every: int | None = None, best: int | None = None) -> list[int]:
    for step in steps:
        final = saved(run_dir, step)
        if step == best:
            point_best_to(final)
        delete_old(run_dir, final, keep, keep_every)
    return kept(run_dir)


def test_the_newest_are_kept(tmp_path: Path):
    assert save_in_turn(tmp_path, [10, 20, 30, 40], keep=2) == [30, 40]


def test_those_of_every_so_many_steps_are_kept_for_ever(tmp_path: Path):
    assert save_in_turn(tmp_path, list(range(10, 110, 10)), keep=1, keep_every=40) == [40, 80, 100]


def test_the_best_is_kept_until_another_is_better(tmp_path: Path):
    assert save_in_turn(tmp_path, [10, 20, 30, 40], keep=1, best=20) == [20, 40]
    assert find_checkpoint(tmp_path / "checkpoints" / BEST) == checkpoint_path(tmp_path, 20).resolve()
    assert save_in_turn(tmp_path, [50, 60], keep=1, best=50) == [50, 60]


def save_steps(run_dir: Path, steps: list[int], nonfinite: list[int], keep: int) -> list[int]:
    """Write checkpoints in turn, some of them while steps are not finite; those that are kept."""
    for step in steps:
        final = saved(run_dir, step)
        (final / PROGRESS).write_text(json.dumps({"step": step, "nonfinite_in_a_row": int(step in nonfinite)}))
        delete_old(run_dir, final, keep, None)
    return kept(run_dir)


@pytest.mark.parametrize(
    ("steps", "nonfinite", "keep", "expected"),
    [
        ([10, 20, 30], [30], 2, [10, 20, 30]),
        ([10, 20, 30, 40, 50], [30, 40, 50], 2, [10, 20, 50]),
        ([10, 20], [20], 1, [10, 20]),
        ([10, 20, 30], [20, 30], 1, [10, 30]),
        ([10, 20, 30, 40], [30], 2, [20, 40]),
        ([10, 20], [10, 20], 2, [20]),
    ],
)
def test_one_of_steps_that_are_not_finite_pushes_no_good_one_out(
    tmp_path: Path, steps: list[int], nonfinite: list[int], keep: int, expected: list[int]
):
    assert save_steps(tmp_path, steps, nonfinite, keep) == expected


def test_an_old_one_that_cannot_be_deleted_yet_is_out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = saved(tmp_path, 10), saved(tmp_path, 20)

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")  # NFS, where somebody reads a file of it

    with monkeypatch.context() as patched:
        patched.setattr("os.rmdir", refuse)
        delete_old(tmp_path, new, keep=1, keep_every=None)
    assert all_checkpoints(tmp_path) == [new]
    sweep_up(tmp_path)
    assert list(old.parent.iterdir()) == [new]


def test_steps_of_any_length_are_in_order(tmp_path: Path):
    for step in (99_999_999, 100_000_000):
        saved(tmp_path, step)
    assert kept(tmp_path) == [99_999_999, 100_000_000]


def test_what_is_not_a_checkpoint_is_none(tmp_path: Path):
    for name in ("step-12", "step-00000001.old", ".step-00000002.partial", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert all_checkpoints(tmp_path) == []


@pytest.mark.parametrize("place", [0, 57, 99])
def test_a_single_flipped_bit_is_noticed(tmp_path: Path, place: int):
    checkpoint = saved(tmp_path, 3)
    records = read_marker(checkpoint)
    assert damage_among(checkpoint, records, list(records)) is None
    tensors = checkpoint / "state" / "tensors"
    content = bytearray(tensors.read_bytes())
    content[place] ^= 1
    tensors.write_bytes(content)
    assert (
        damage_among(checkpoint, records, list(records)) == "state/tensors has changed since it was written: its SHA-256 differs"
    )


def test_a_marker_tells_size_and_digest(tmp_path: Path):
    record = read_marker(saved(tmp_path, 3))["state/tensors"]
    assert record == FileRecord(100, hashlib.sha256(b"\x03" * 100).hexdigest())


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"state/tensors": {"size": 3}}', '{"state/tensors": null}'])
def test_a_marker_that_is_none_is_told_in_a_few_words(tmp_path: Path, content: str):
    checkpoint = saved(tmp_path, 3)
    (checkpoint / "complete").write_text(content)
    with pytest.raises(UserError, match=r"^complete: not readable \(\w+\)$"):
        read_marker(checkpoint)
