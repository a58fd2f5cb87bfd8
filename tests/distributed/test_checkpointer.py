"""Checkpoints are written beside the training: they hold the state of their step, and the run decides on their failures."""

import threading
from pathlib import Path

import pytest
import torch

from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from trainer.checkpoint import save as checkpointer_module
from trainer.checkpoint.files import checkpoint_path, complete_checkpoints
from trainer.checkpoint.load import damage, read_progress
from trainer.checkpoint.save import Checkpointer
from trainer.config.schema import CheckpointConfig
from trainer.distributed.processes import Processes
from trainer.errors import UserError

pytestmark = pytest.mark.slow


class Gate:
    """Holds the writing thread of this rank where a checkpoint would get its name (rank 0), or its digests (any)."""

    def __init__(self, function: str) -> None:
        self.opened = threading.Event()
        kept = getattr(checkpointer_module, function)

        def held(*args: object) -> object:
            assert self.opened.wait(60)
            return kept(*args)

        setattr(checkpointer_module, function, held)


def save_while_training(processes: Processes, run_dir: Path, stage: int) -> None:
    """A checkpoint that is being written during two more steps."""
    run = TinyRun(tiny(Layout(2, 2, stage)), processes)
    run.step()
    checkpointer = Checkpointer(run_dir, CheckpointConfig(), processes, run.sharding)
    gate = Gate("record_of")
    checkpointer.save(run.engine, run.progress)
    run.step()
    run.step()
    assert not checkpointer.is_written
    assert not complete_checkpoints(run_dir)
    gate.opened.set()
    report = checkpointer.wait()
    assert report is not None
    assert (report.step, report.bytes > 10_000) == (1, True)
    assert damage(checkpoint_path(run_dir, 1), processes) is None
    assert checkpointer.wait() is None, "it is told once"


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_holds_its_step_though_the_training_went_on(run_dir, tmp_path, stage):
    run_distributed(save_while_training, 2, run_dir, stage)
    assert read_progress(checkpoint_path(run_dir, 1)).step == 1
    saved = tensors_in(checkpoint_path(run_dir, 1))
    run_distributed(save_at_once, 2, run_dir, stage)
    again = tensors_in(checkpoint_path(run_dir, 1))
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def save_at_once(processes: Processes, run_dir: Path, stage: int) -> None:
    run = TinyRun(tiny(Layout(2, 2, stage)), processes)
    run.step()
    run.save(run_dir)


def save_and_look(processes: Processes, run_dir: Path) -> None:
    """A checkpoint that the training waits for."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    run.step()
    checkpointer = Checkpointer(run_dir, CheckpointConfig(asynchronous=False), processes, run.sharding)
    report = checkpointer.save(run.engine, run.progress)
    assert report is not None
    assert report.step == 1
    assert complete_checkpoints(run_dir) == [checkpoint_path(run_dir, 1)]
    assert checkpointer.wait() is None


def test_a_run_may_wait_for_its_checkpoints(run_dir):
    run_distributed(save_and_look, 2, run_dir)


def fail_and_go_on(processes: Processes, run_dir: Path) -> None:
    """The disk of rank 1 refuses a checkpoint; the next one is written."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    checkpointer = Checkpointer(run_dir, CheckpointConfig(on_failure="continue"), processes, run.sharding)
    kept = checkpointer_module.record_of

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    for step, record_of in enumerate((refuse if processes.rank == 1 else kept, kept), start=1):
        checkpointer_module.record_of = record_of
        run.step()
        checkpointer.save(run.engine, run.progress)
        assert (checkpointer.wait() is None) == (step == 1)
    checkpointer_module.record_of = refuse
    open_files = []
    for _ in range(3):
        checkpointer.save(run.engine, run.progress)
        assert checkpointer.wait() is None
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert open_files[-1] == open_files[0], "days of a full disk must not use up the connections"
    checkpointer.save(run.engine, run.progress)
    with pytest.raises(UserError, match="the last complete one, step-00000002, is intact"):
        checkpointer.wait(must_succeed=True)  # nothing comes after it


def test_a_run_may_go_on_without_a_checkpoint_that_could_not_be_written(run_dir):
    run_distributed(fail_and_go_on, 2, run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000002"]


def hang_and_go_on(processes: Processes, run_dir: Path) -> None:
    """The disk of rank 1 does not answer for a while."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    run.step()
    config = CheckpointConfig(on_failure="continue", timeout_minutes=0.02)
    checkpointer = Checkpointer(run_dir, config, processes, run.sharding)
    gate = Gate("record_of")
    if processes.rank == 0:
        gate.opened.set()
    checkpointer.save(run.engine, run.progress)
    assert checkpointer.wait() is None
    run.step()
    checkpointer.save(run.engine, run.progress)
    assert checkpointer.wait() is None, "none is begun while the disk does not answer"
    checkpointer.save(run.engine, run.progress)
    with pytest.raises(UserError, match=r"the checkpoint of step 1 could not be written to .*is still not responding"):
        checkpointer.wait(must_succeed=True)  # or the run would end as if it were saved
    gate.opened.set()
    config.timeout_minutes = 1.0
    run.step()
    while (report := _saved(checkpointer, run)) is None:
        run.step()
    assert report.step == run.progress.step


def _saved(checkpointer: Checkpointer, run: TinyRun) -> object:
    checkpointer.save(run.engine, run.progress)
    return checkpointer.wait()


def test_a_disk_that_hangs_does_not_hang_the_training(run_dir):
    run_distributed(hang_and_go_on, 2, run_dir)
    (checkpoint,) = complete_checkpoints(run_dir)
    assert read_progress(checkpoint).step >= 3


def hang_and_stop(processes: Processes, run_dir: Path) -> str:
    """The same where the run is to stop for it."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    run.step()
    checkpointer = Checkpointer(run_dir, CheckpointConfig(timeout_minutes=0.02), processes, run.sharding)
    gate = Gate("record_of")
    if processes.rank == 0:
        gate.opened.set()
    checkpointer.save(run.engine, run.progress)
    with pytest.raises(UserError) as caught:
        checkpointer.wait()
    gate.opened.set()
    return str(caught.value)


def test_a_disk_that_hangs_ends_the_run_on_all_ranks(run_dir):
    first, second = run_distributed(hang_and_stop, 2, run_dir)
    assert first == second
    assert "the checkpoint of step 1 could not be written" in first
    assert "there is no earlier one" in first
