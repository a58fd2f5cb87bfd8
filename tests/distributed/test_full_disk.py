"""A checkpoint that cannot be written ends every rank with one line, leaves the earlier one alone, and no half one behind."""

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.checkpoints import files_in
from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from trainer.checkpoint.files import checkpoint_path, complete_checkpoints
from trainer.distributed.processes import Processes
from trainer.errors import UserError

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system itself refuses to write more into a file of this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def full_disk(method: str) -> Iterator[None]:
    """A method of Path fails as on a full disk."""
    kept = getattr(Path, method)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    setattr(Path, method, fail)
    try:
        yield
    finally:
        setattr(Path, method, kept)


FAILURES = {
    "tensors of rank 0": (0, lambda: no_file_larger_than(10_000)),
    "tensors of rank 1": (1, lambda: no_file_larger_than(10_000)),
    "first byte of rank 1": (1, lambda: no_file_larger_than(0)),
    "making the folder": (0, lambda: full_disk("mkdir")),
    "progress": (0, lambda: full_disk("write_text")),
    "its name": (0, lambda: full_disk("rename")),
}


def fail_to_save(processes: Processes, run_dir: Path, stage: int) -> dict[str, str]:
    """A good checkpoint, then a failing one in each way, then a good one again; what the UserErrors say."""
    run = TinyRun(tiny(Layout(2, 2, stage)), processes)
    run.step()
    run.save(run_dir)
    before = files_in(checkpoint_path(run_dir, 1))
    run.step()
    lines = {}
    for name, (rank, failing) in FAILURES.items():
        with failing() if processes.rank == rank else contextlib.nullcontext():
            try:
                run.save(run_dir, keep=1)
                lines[name] = "no error"
            except UserError as problem:
                lines[name] = str(problem)
        processes.barrier()
        assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000001"], name
        assert files_in(checkpoint_path(run_dir, 1)) == before, name
        processes.barrier()
    run.save(run_dir, keep=1)
    return lines


def test_a_full_disk_of_one_rank_is_one_line_on_all_of_them(run_dir):
    first, second = run_distributed(fail_to_save, 2, run_dir, 2)
    assert first == second
    for name, line in first.items():
        print(name, "->", line)
        assert line.startswith(f"the checkpoint of step 2 could not be written to {run_dir / 'checkpoints'} ("), name
        assert "the last complete one, step-00000001, is intact" in line
        assert "\n" not in line
        assert ("File too large" if "rank" in name else "No space left on device") in line
    assert complete_checkpoints(run_dir) == [checkpoint_path(run_dir, 2)], "room again: the next one is written"
