"""A checkpoint that cannot be loaded is one clear line on every rank; and nothing is deleted."""

import shutil
from pathlib import Path

import pytest

from tests.distributed.checkpoints import files_in
from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from trainer.checkpoint.files import PROGRESS, checkpoint_path
from trainer.distributed.processes import Processes
from trainer.errors import UserError

pytestmark = pytest.mark.slow


def save_one(processes: Processes, run_dir: Path) -> None:
    """A checkpoint after one step."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    run.step()
    run.save(run_dir)


def try_each(processes: Processes, attempts: list[tuple[Path, Layout]]) -> list[str | None]:
    """Load each of the checkpoints: what the UserError says, None when there was none."""
    lines: list[str | None] = []
    for checkpoint, layout in attempts:
        try:
            TinyRun(tiny(layout), processes, checkpoint)
            lines.append(None)
        except UserError as problem:
            lines.append(str(problem))
    return lines


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "truncated tensors": lambda checkpoint: _truncate(checkpoint / "state" / "__1_0.distcp"),
    "truncated tensors of rank 0": lambda checkpoint: _truncate(checkpoint / "state" / "__0_0.distcp"),
    "empty tensors": lambda checkpoint: (checkpoint / "state" / "__1_0.distcp").write_bytes(b""),
    "no tensors": lambda checkpoint: (checkpoint / "state" / "__0_0.distcp").unlink(),
    "no metadata": lambda checkpoint: (checkpoint / "state" / ".metadata").unlink(),
    "truncated metadata": lambda checkpoint: _truncate(checkpoint / "state" / ".metadata"),
    "zeroed metadata": lambda checkpoint: (checkpoint / "state" / ".metadata").write_bytes(bytes(4096)),
    "no progress": lambda checkpoint: (checkpoint / PROGRESS).unlink(),
    "truncated progress": lambda checkpoint: _truncate(checkpoint / PROGRESS),
    "progress of something else": lambda checkpoint: (checkpoint / PROGRESS).write_text('{"epoch": 3}'),
}


def test_damage_and_other_architectures_end_in_one_line_on_every_rank(run_dir):
    run_distributed(save_one, 2, run_dir)
    good = checkpoint_path(run_dir, 1)
    damaged = {}
    for name, damage in DAMAGES.items():
        damaged[name] = run_dir / name
        shutil.copytree(good, damaged[name])
        damage(damaged[name])
    before = {name: files_in(path) for name, path in damaged.items()}
    here = Layout(2, 2, 2)
    others = [here.with_(model__width=64), here.with_(model__expert_layers=(1,)), here.with_(model__experts=4)]
    attempts = [(path, here) for path in damaged.values()] + [(good, other) for other in others] + [(good, here)]
    first, second = run_distributed(try_each, 2, attempts)
    assert first == second, "every rank says the same"
    for name, line in zip(damaged, first, strict=False):
        print(name, "->", line)
        assert line is not None, f"{name} went unnoticed"
        assert str(damaged[name]) in line
        assert "damaged" in line
        assert "\n" not in line
    wider, fewer_layers, fewer_experts, unharmed = first[len(damaged) :]
    assert unharmed is None
    assert "heads.image.weight: 32x32 there, 32x64 here" in wider
    assert "missing here" in fewer_layers
    assert "experts.down: 8x64x32 there, 4x64x32 here" in fewer_experts
    assert all("another architecture" in line and str(good) in line for line in (wider, fewer_layers, fewer_experts))
    assert before == {name: files_in(path) for name, path in damaged.items()}, "nothing is deleted or changed"
