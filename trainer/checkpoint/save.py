"""Writing checkpoints while training continues (torch.distributed.checkpoint, in a background thread)."""

import contextlib
import json
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainer.checkpoint.files import (
    CONFIG,
    PROGRESS,
    STATE,
    TOKENIZER,
    FileRecord,
    checkpoint_path,
    delete_old,
    partial_path,
    point_best_to,
    publish,
    record_of,
    sync,
    write_marker,
)
from trainer.checkpoint.load import first_failure
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import CheckpointConfig
from trainer.distributed.processes import Processes
from trainer.engine.state import ExpertSharding, read_state
from trainer.errors import UserError, reason

_log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""No rank waits longer than this for its own disk before it hears from the others, so that no collective times out."""


@dataclass(frozen=True)
class SaveReport:
    """The cost of a checkpoint. blocked: seconds without training; written: seconds in the background; bytes: of tensors."""

    step: int
    blocked: float
    written: float
    bytes: int


@dataclass
class _Write:
    """A checkpoint on its way to the disk, in a thread of each rank."""

    final: Path
    progress: TrainingProgress
    blocked: float
    seconds: float = 0.0
    bytes: int = 0
    problem: str | None = None
    lost_contact: bool = False
    """Whether the threads of the ranks no longer hear each other, which makes their group unusable."""
    thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Checkpointer:
    """Writes the checkpoints of a run. All ranks call its methods together, from the training's own thread."""

    def __init__(
        self, run_dir: Path, config: CheckpointConfig, processes: Processes, sharding: ExpertSharding, last: Path | None = None
    ) -> None:
        """`last`: the checkpoint that the run resumes from, for messages. A collective."""
        self._run_dir = run_dir
        self._config = config
        self._processes = processes
        self._sharding = sharding
        self._last = last
        self._write: _Write | None = None
        self._stuck: _Write | None = None
        self.problem: str | None = None
        """The line about the last checkpoint, if it could not be written."""
        self._aside = processes.aside(config.timeout_minutes)

    @property
    def is_written(self) -> bool:
        """Whether this rank's thread is done with a checkpoint that nobody has waited for yet."""
        return self._write is not None and not self._write.is_running

    def save(self, engine: Any, progress: TrainingProgress) -> SaveReport | None:
        """Copy the state to CPU memory and start to write it; returns the report of the one before, if that was still open.

        With `checkpoint.asynchronous=false` it waits until this one is complete, and returns its report.
        Raises UserError when one could not be written and `checkpoint.on_failure=stop`.
        """
        before = self.wait()
        if self._is_stuck():
            return before
        started = time.monotonic()
        share = read_state(engine, self._processes, self._sharding)
        write = _Write(checkpoint_path(self._run_dir, progress.step), replace(progress), time.monotonic() - started)
        write.thread = threading.Thread(target=self._write_share, args=(write, share), daemon=True, name="checkpoint")
        write.thread.start()
        self._write = write
        return before if self._config.asynchronous else self.wait()

    def wait(self, must_succeed: bool = False) -> SaveReport | None:
        """Wait until the checkpoint that is being written is complete; None when there is none, or it failed.

        `must_succeed`: the current state has to be on disk afterwards. Raises UserError, on every rank, when it
        could not be written and the run has to stop for that.
        """
        write, self._write = self._write, None
        if write is None or write.thread is None:
            if must_succeed and self._stuck is not None:
                self._fail(self._stuck, "the disk is still not responding", stop=True)
            return None
        started = time.monotonic()
        problem = self._problem_of(write, started + 60 * self._config.timeout_minutes)
        if problem is not None:
            self._fail(write, problem, must_succeed or self._config.on_failure == "stop")
            return None
        self._last, self.problem = write.final, None
        return SaveReport(write.progress.step, write.blocked + time.monotonic() - started, write.seconds, write.bytes)

    def _problem_of(self, write: _Write, until: float) -> str | None:
        """What kept the checkpoint from being written on any rank, the same on every rank."""
        assert write.thread is not None
        while True:
            write.thread.join(POLL_SECONDS)
            flags = torch.tensor([write.is_running, time.monotonic() > until], dtype=torch.float32)
            running, late = self._processes.sum(flags.to(self._processes.device)).tolist()
            if not running:
                write.lost_contact = self._processes.any(write.lost_contact)
                return next((found for found in self._processes.gather_objects(write.problem) if found), None)
            if late:
                self._stuck, write.lost_contact = write, True
                return f"it was not finished after {self._config.timeout_minutes:g} minutes"

    def _fail(self, write: _Write, problem: str, stop: bool) -> None:
        left = f"the last complete one, {self._last.name}, is intact" if self._last else "there is no earlier one"
        line = (
            f"the checkpoint of step {write.progress.step} could not be written to {self._run_dir / 'checkpoints'} "
            f"({problem}); {left}"
        )
        self.problem = line
        if stop:
            raise UserError(f"{line}: make room, then run the same command again")
        if self._processes.is_first:
            _log.warning("%s: training continues, and the next checkpoint is tried as usual", line)
        if write.lost_contact:
            self._aside = self._processes.aside(self._config.timeout_minutes)

    def _is_stuck(self) -> bool:
        """Whether an earlier write still hangs on any rank, so that no other can start."""
        if self._stuck is not None and not self._processes.any(self._stuck.is_running):
            self._stuck = None
        if self._stuck is not None and self._processes.is_first:
            _log.warning("no checkpoint now: the one of step %d is still waiting for the disk", self._stuck.progress.step)
        return self._stuck is not None

    def _write_share(self, write: _Write, share: dict[str, Tensor]) -> None:
        """What the thread does. Every rank ends with a problem, or none does."""
        started = time.monotonic()
        partial = partial_path(write.final)
        try:
            self._write_files(write, partial, share)
        except (OSError, CheckpointException) as problem:
            write.problem = reason(first_failure(problem) if isinstance(problem, CheckpointException) else problem)
            if self._aside.is_first:
                shutil.rmtree(partial, ignore_errors=True)
        except Exception as problem:  # lost contact with another rank, which training will notice too
            write.problem = reason(problem)
            write.lost_contact = True
        write.seconds = time.monotonic() - started

    def _write_files(self, write: _Write, partial: Path, share: dict[str, Tensor]) -> None:
        ranks = self._aside
        with _together(ranks):
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        writer = _Writer(partial / STATE)
        dcp.save(share, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1)
        share.clear()  # free the memory before the files are read again
        records: dict[str, FileRecord] = {}
        with _together(ranks):
            mine = {str(path.relative_to(partial)): record_of(path) for path in partial.glob(f"{STATE}/__{ranks.rank}_*")}
        for others in ranks.gather_objects(mine):
            records |= others
        write.bytes = sum(record.bytes for record in records.values())
        with _together(ranks):
            if ranks.is_first:
                self._complete(write, partial, records)

    def _complete(self, write: _Write, partial: Path, records: dict[str, FileRecord]) -> None:
        """Rank 0's part after the tensors: the small files, the marker, the name; then older ones go."""
        for name in (TOKENIZER, CONFIG):
            shutil.copyfile(self._run_dir / name, partial / name)
        (partial / PROGRESS).write_text(json.dumps(asdict(write.progress), indent=1) + "\n")
        for name in (TOKENIZER, CONFIG, PROGRESS, f"{STATE}/.metadata"):
            sync(partial / name)
            records[name] = record_of(partial / name)
        sync(partial / STATE)  # the names in it
        write_marker(partial, records)
        publish(partial, write.final)
        best = write.progress.best_step
        # Every time, since the run may have been killed before the link was set.
        if best is not None and (checkpoint := checkpoint_path(self._run_dir, best)).is_dir():
            point_best_to(checkpoint)
        delete_old(self._run_dir, write.final, self._config.keep, self._config.keep_every)


class _Writer(FileSystemWriter):
    """Writes what is on the CPU into one file per rank, and reports the operating system's error if that fails.

    torch.save replaces an OSError of its stream by one about its own position.
    """

    def __init__(self, path: Path) -> None:
        # No copying ahead: torch's loader for that asks for a CUDA stream, and in our thread, whose device is GPU 0, every
        # rank would create a context there.
        super().__init__(path, single_file_per_rank=True, per_thread_copy_ahead=0)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share. Raises OSError when the system refuses."""
        try:
            return super().write_data(plan, planner)
        except Exception as problem:
            cause: BaseException | None = problem
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or problem from None


@contextlib.contextmanager
def _together(processes: Processes) -> Iterator[None]:
    """An OSError on any rank is raised on every rank, so that none waits for another."""
    problem: OSError | None = None
    try:
        yield
    except OSError as error:
        problem = error
    for first in processes.gather_objects(problem and (problem.errno, reason(problem))):
        if first:
            raise OSError(*first)


# Set once: a thread that changed the filters while it wrote would change them for all.
warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed\.checkpoint\..*")
