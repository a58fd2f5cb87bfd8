"""A process that is killed before any one change of the disk while it completes a checkpoint: nothing whole is ever lost."""

import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from trainer.checkpoint.files import BEST, CONFIG, PROGRESS, STATE, TOKENIZER, checkpoint_path, partial_path, record_of
from trainer.checkpoint.load import newest_sound
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.save import Checkpointer, _Write
from trainer.config.schema import CheckpointConfig
from trainer.distributed.processes import Processes
from trainer.training.directory import _prepare

ALONE = Processes(0, 1, 0, torch.device("cpu"))
CHANGES = [(os, name) for name in ("rename", "replace", "symlink", "unlink", "rmdir", "fsync", "mkdir")] + [(shutil, "copyfile")]


def complete(run_dir: Path, step: int, best: int) -> None:
    """All that rank 0 does once the tensors are written; only the newest and the best are kept."""
    partial = partial_path(checkpoint_path(run_dir, step))
    tensors = partial / STATE / "__0_0.distcp"
    tensors.parent.mkdir(parents=True)
    tensors.write_bytes(bytes(100))
    (partial / STATE / ".metadata").write_text("of the tensors")
    checkpointer: Any = SimpleNamespace(_run_dir=run_dir, _config=CheckpointConfig(keep=1))
    write = _Write(checkpoint_path(run_dir, step), TrainingProgress(step=step, best_step=best), blocked=0.0)
    Checkpointer._complete(checkpointer, write, partial, {f"{STATE}/{tensors.name}": record_of(tensors)})


def die_before_change(number: int) -> None:
    """From now on the process ends instead of making the given change to the disk."""
    counted = itertools.count(1)

    def counting(change: Any) -> Any:
        return lambda *args, **kwargs: os._exit(9) if next(counted) == number else change(*args, **kwargs)

    for owner, name in CHANGES:
        setattr(owner, name, counting(getattr(owner, name)))


def complete_and_die(run_dir: Path, number: int) -> bool:
    """Complete a third checkpoint, the best so far, in a process that dies; whether it came to its end before."""
    process = os.fork()
    if process == 0:
        try:
            die_before_change(number)
            complete(run_dir, 3, best=3)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    return code == 0


def test_no_moment_to_be_killed_loses_a_checkpoint_or_the_best(tmp_path: Path):
    for number in itertools.count(1):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        for name in (CONFIG, TOKENIZER):
            (run_dir / name).touch()
        complete(run_dir, 1, best=1)
        complete(run_dir, 2, best=1)
        ended = complete_and_die(run_dir, number)
        found = newest_sound(run_dir, ALONE)
        assert found is not None
        assert found.name in ("step-00000002", "step-00000003"), number
        # The next start, and its first checkpoint.
        _prepare(run_dir, found)
        best = json.loads((found / PROGRESS).read_text())["best_step"]
        complete(run_dir, 4, best)
        link = run_dir / "checkpoints" / BEST
        assert link.resolve() == checkpoint_path(run_dir, best).resolve(), number
        assert {path.name for path in link.parent.iterdir()} == {BEST, link.resolve().name, "step-00000004"}, number
        if ended:
            break
    assert number > 20, "there are many moments"
