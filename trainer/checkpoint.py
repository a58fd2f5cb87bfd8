"""Checkpoints: the logical state in files that any layout can read (torch.distributed.checkpoint).

    checkpoints/step-00001000/
        state/           tensors, each rank's share
        tokenizer.model
        config.yaml
        progress.json    what a resume needs beside tensors
        complete         the marker, written last

A checkpoint is written under a temporary name and renamed when it is whole, so a name without the marker never counts.
"""

import contextlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainer.errors import UserError
from trainer.processes import Processes
from trainer.state import MOMENTS, WEIGHTS, ExpertSharding, empty_state, read_state

MARKER = "complete"
PROGRESS = "progress.json"
TOKENIZER = "tokenizer.model"
CONFIG = "config.yaml"
_NAME = re.compile(r"step-(\d{8})$")


@dataclass
class TrainingProgress:
    """What a resume needs beside tensors."""

    step: int = 0
    """Optimizer steps done, skipped ones counted; the schedule and the data go on from here."""
    optimizer_steps: int = 0
    """Steps that the optimizer applied."""
    skipped_steps: int = 0
    """Steps left out because the loss or the gradient was not finite."""
    seed: int = 0
    batches: int = 0
    """Micro-batches drawn from the training data."""
    streams: int | None = None
    """Canonical streams that the data was dealt from: their number decides its order, so a resume keeps it."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.search(path.name) and (path / MARKER).is_file())


def find_checkpoint(where: Path) -> Path | None:
    """`where` itself if it is a complete checkpoint, else the newest complete one of the run directory `where`, if any."""
    if (where / MARKER).is_file():
        return where
    found = complete_checkpoints(where)
    return found[-1] if found else None


def save_checkpoint(
    run_dir: Path, engine: Any, progress: TrainingProgress, processes: Processes, sharding: ExpertSharding, keep: int
) -> Path:
    """Write the checkpoint of `progress.step` and delete all but the `keep` newest. A collective.

    Raises UserError, on every rank, when it cannot be written; older checkpoints are untouched then.
    """
    final = checkpoint_path(run_dir, progress.step)
    partial = final.with_name(f".{final.name}.partial")
    share = read_state(engine, processes, sharding)
    with _write_errors(processes, run_dir, progress.step):
        with _together(processes):
            if processes.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(share, storage_writer=_Writer(partial / "state", single_file_per_rank=True))
        with _together(processes):
            if processes.is_first:
                _finish(run_dir, partial, final, progress, keep)
    return final


class _Writer(FileSystemWriter):
    """Tells what the system said: torch.save covers an OSError of its stream with an error about its own position in it."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share. Raises OSError when the system refuses."""
        try:
            return super().write_data(plan, planner)
        except Exception as problem:
            cause: BaseException | None = problem
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or problem from None


def _finish(run_dir: Path, partial: Path, final: Path, progress: TrainingProgress, keep: int) -> None:
    for name in (TOKENIZER, CONFIG):
        shutil.copyfile(run_dir / name, partial / name)
    (partial / PROGRESS).write_text(json.dumps(asdict(progress), indent=1) + "\n")
    (partial / MARKER).touch()
    if final.exists():  # an incomplete one, or the same step written again after a resume
        shutil.rmtree(final)
    partial.rename(final)
    others = [path for path in complete_checkpoints(run_dir) if path != final]  # later ones too, after going back to an early one
    for old in others[: max(0, len(others) - (max(1, keep) - 1))]:
        shutil.rmtree(old)


@contextlib.contextmanager
def _together(processes: Processes) -> Iterator[None]:
    """An OSError of any rank becomes one on every rank, so that none waits for another."""
    problem: OSError | None = None
    try:
        yield
    except OSError as error:
        problem = error
    for first in processes.gather_objects(problem and (problem.errno, problem.strerror or str(problem))):
        if first:
            raise OSError(*first)


@contextlib.contextmanager
def _write_errors(processes: Processes, run_dir: Path, step: int) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException) as problem:
        newest = find_checkpoint(run_dir)
        left = f"the last complete one, {newest.name}, is untouched" if newest else "there is no earlier one"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {run_dir / 'checkpoints'} ({_reason(problem)}); {left}: "
            f"make room and start the same command again"
        ) from problem
    finally:
        if processes.is_first:
            shutil.rmtree(run_dir / "checkpoints" / f".step-{step:08d}.partial", ignore_errors=True)


def _reason(problem: OSError | CheckpointException) -> str:
    if isinstance(problem, CheckpointException):
        errors = [wrapped[0] if isinstance(wrapped, tuple) else wrapped for wrapped in problem.failures.values()]
        problem_text = str(errors[0]) if errors else str(problem)
        return problem_text.strip().splitlines()[-1][:200]
    return problem.strerror or str(problem)


def read_progress(checkpoint: Path) -> TrainingProgress:
    """What the checkpoint says beside tensors. Raises UserError when it cannot be read."""
    try:
        return TrainingProgress(**json.loads((checkpoint / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as problem:
        raise _unreadable(checkpoint, problem) from problem


def _unreadable(checkpoint: Path, problem: BaseException) -> UserError:
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[-1][:160]
    return UserError(
        f"checkpoint {checkpoint} is damaged ({reason}): "
        f"move it away to go on from the one before, or choose another with resume=DIR"
    )


def load_state(checkpoint: Path, model: nn.Module, sharding: ExpertSharding, with_moments: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint for this model under this layout: dense ones whole, this rank's experts. A collective.

    Raises UserError for a damaged checkpoint and for one of another architecture, naming the tensors that differ.
    """
    state = empty_state(model, (WEIGHTS, *MOMENTS) if with_moments else (WEIGHTS,), sharding)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    check_architecture(checkpoint, {key: tuple(value.shape) for key, value in state.items()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=FileSystemReader(checkpoint / "state"))
    except CheckpointException as problem:
        raise _unreadable(checkpoint, _first_failure(problem)) from problem
    return state


def _first_failure(problem: CheckpointException) -> BaseException:
    failure = next(iter(problem.failures.values()), None)
    return failure[0] if isinstance(failure, tuple) else problem


def check_architecture(checkpoint: Path, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError for a damaged checkpoint and for one whose weights (`model/…`) have other shapes. Reads no tensor."""
    try:
        saved = {
            key: tuple(entry.size)
            for key, entry in FileSystemReader(checkpoint / "state").read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
    except Exception as problem:  # whatever a damaged pickle raises
        raise _unreadable(checkpoint, problem) from problem
    prefix = f"{WEIGHTS}/"
    names = sorted(key for key in saved.keys() | wanted.keys() if key.startswith(prefix) and saved.get(key) != wanted.get(key))
    if not names:
        return
    shown = "; ".join(
        f"{key.removeprefix(prefix)}: {_shape(saved.get(key))} there, {_shape(wanted.get(key))} here" for key in names[:3]
    )
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"checkpoint {checkpoint} is of another architecture ({shown}{more}): "
        f"use the model it was trained with, or another run.name"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "scalar"
