"""Resuming from a checkpoint: which one is sound, and what it contains for this model under this layout."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from model.hub import is_on_hub
from model.paths import user_path
from model.pretrained import WEIGHTS as EXPORTED
from trainer.checkpoint.files import PROGRESS, STATE, FileRecord, all_checkpoints, damage_among, find_checkpoint, read_marker
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.arguments import Argument
from trainer.config.schema import TrainConfig
from trainer.data.order.progress import DataProgress
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import ALONE, Processes
from trainer.engine.state import (
    EMA,
    MOMENTS,
    WEIGHTS,
    ExpertSharding,
    expert_names,
    key_of,
    named_tensors,
    tensor_sizes,
    trained_parameters,
)
from trainer.errors import UserError, reason

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


START_OVER = "repair them, or start from the beginning with resume=never (they are kept)"


def newest_sound(run_dir: Path, processes: Processes, digests: bool = True, remedy: str = START_OVER) -> Path | None:
    """The newest checkpoint of a run whose files are intact; warns of damaged ones on the way. A collective.

    digests: as in `damage`; remedy: what to do when all are damaged. None when there are no checkpoints. Raises UserError when
    there are some and all are damaged.
    """
    candidates = first_reads(lambda: all_checkpoints(run_dir), processes)
    for checkpoint in reversed(candidates):
        problem = damage(checkpoint, processes, digests)
        if problem is None:
            return checkpoint
        if was_deleted(checkpoint, processes):
            return newest_sound(run_dir, processes, digests)  # a run is training there, and has newer ones by now
        if processes.is_first:
            _log.warning("checkpoint %s is damaged and was skipped: %s", checkpoint, problem)
    if candidates:
        raise UserError(
            f"none of the {len(candidates)} checkpoints in {run_dir / 'checkpoints'} can be read (the oldest: {problem}): "
            f"{remedy}"
        )
    return None


class CheckpointDeleted(UserError):
    """A checkpoint was deleted by its own run while it was read."""


def was_deleted(checkpoint: Path, processes: Processes = ALONE) -> bool:
    """Whether a checkpoint, seen before, no longer exists. A collective; rank 0 looks.

    A checkpoint loses its name before its files, so if reading failed because of a deletion, this is true.
    """
    return processes.from_first(not os.path.lexists(checkpoint))


@contextlib.contextmanager
def reading(*checkpoints: Path, processes: Processes = ALONE) -> Iterator[None]:
    """For what each rank reads by itself: a UserError on any rank is raised on all, as CheckpointDeleted if that is the cause."""
    problem: UserError | None = None
    try:
        yield
    except UserError as error:
        problem = error
    first = next((found for found in processes.gather_objects(problem) if found is not None), None)
    if first is None:
        return
    gone = next((checkpoint for checkpoint in checkpoints if was_deleted(checkpoint, processes)), None)
    raise _deleted(gone) if gone else first


def take_newest(choose: Callable[[], T], use: Callable[[T], R], processes: Processes = ALONE) -> R:
    """What `use` makes of what `choose` finds; chosen again whenever the checkpoint is deleted meanwhile.

    So a run can be read while it trains and deletes its older checkpoints. `choose` is called on rank 0; `use` is a collective,
    and raises CheckpointDeleted on every rank or on none. Raises the last one if nothing is left to choose.
    """
    deleted: CheckpointDeleted | None = None

    def choose_again() -> T:
        nonlocal deleted
        while True:
            try:
                return choose()
            except CheckpointDeleted as problem:
                deleted = problem
            except UserError as problem:
                raise deleted or problem from None

    while True:
        chosen = first_reads(choose_again, processes)
        try:
            return use(chosen)
        except CheckpointDeleted as problem:
            deleted = problem
            if processes.is_first:
                _log.warning("the checkpoint was deleted while it was read, by the run that trains there: using its newest one")


def check_sound(checkpoint: Path, processes: Processes, digests: bool = True) -> None:
    """Raise UserError on every rank when the files of a checkpoint have changed since they were written. A collective."""
    problem = damage(checkpoint, processes, digests)
    if problem is not None:
        raise processes.from_first(_unreadable(checkpoint, problem))


def damage(checkpoint: Path, processes: Processes, digests: bool = True) -> str | None:
    """What is wrong with the files of a checkpoint, if anything; each rank reads its share of them. A collective.

    digests: False compares only their sizes, which takes no time however large they are.
    """
    records, problem = first_reads(lambda: _marker_of(checkpoint), processes)
    if problem is not None:
        return problem
    by_size = sorted(records, key=lambda name: (records[name].bytes, name))
    mine = damage_among(checkpoint, records, by_size[processes.rank :: processes.world], digests)
    return next((found for found in processes.gather_objects(mine) if found is not None), None)


def _marker_of(checkpoint: Path) -> tuple[dict[str, FileRecord], str | None]:
    try:
        return read_marker(checkpoint), None
    except UserError as problem:
        return {}, str(problem)


def read_progress(checkpoint: Path) -> TrainingProgress:
    """What the checkpoint contains besides tensors. Raises UserError when it cannot be read."""
    try:
        values = json.loads((checkpoint / PROGRESS).read_text())
        return TrainingProgress(**values | {"data": DataProgress(**values.get("data", {}))})
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise _unreadable(checkpoint, f"{PROGRESS}: {reason(problem)}") from problem


def _unreadable(checkpoint: Path, problem: BaseException | str) -> UserError:
    if was_deleted(checkpoint):
        return _deleted(checkpoint)
    return UserError(
        f"checkpoint {checkpoint} is damaged ({reason(problem)}): move it away to use the previous one, or name another"
    )


def _deleted(checkpoint: Path) -> CheckpointDeleted:
    return CheckpointDeleted(
        f"checkpoint {checkpoint} was deleted while it was read, by its own run, which keeps only its newest "
        f"(checkpoint.keep): give the run directory to use its newest one, or a checkpoint that is kept"
    )


class SavedState:
    """The tensors of a checkpoint for a model under a layout. Each is read by one rank and passed on to those that need it.

    So a rank holds in memory at most its share of one kind at a time, and of the weights while they are still needed.
    """

    def __init__(self, checkpoint: Path, model: nn.Module, sharding: ExpertSharding | None, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        self._checkpoint = checkpoint
        self._sharding = sharding
        self._experts = expert_names(model) if sharding else set()
        self._like = {name: torch.empty(tensor.shape, device="meta") for name, tensor in named_tensors(model).items()}
        self._trained = set(trained_parameters(model))
        self._frozen = {name for name, _ in model.named_parameters()} - self._trained
        self._saved = _saved_shapes(checkpoint)
        self._dealt = sharding.deal(tensor_sizes(model), self._experts) if sharding else {}
        self._kept: dict[str, dict[str, Tensor]] = {}

    def tensors(self, kind: str, again: bool = False) -> Iterator[tuple[str, Tensor]]:
        """As trainer.engine.state.SavedTensors. Raises UserError for a damaged checkpoint."""
        share = self._kept.pop(kind, None) or self._read(kind)
        if again:
            self._kept[kind] = share
            share = dict(share)
        for name, like in self._like.items():
            if self._key(kind, name) is None:
                continue
            mine = share.pop(name, None)
            if self._sharding is None:
                assert mine is not None
                yield name, mine
            else:
                yield name, self._sharding.handed_round(mine, like, self._dealt[name])
            del mine

    @property
    def newly_trained(self) -> set[str]:
        """The parameters that are trained, but were frozen before: the checkpoint has no moments of them."""
        return {name for name in self._trained if f"{MOMENTS[0]}/{name}" not in self._saved}

    @property
    def newly_frozen(self) -> set[str]:
        """The parameters that are frozen, but were trained before."""
        return {name for name in self._frozen if f"{MOMENTS[0]}/{name}" in self._saved}

    def _key(self, kind: str, name: str) -> str | None:
        """Where the checkpoint holds a tensor of a kind; None if it does not, and of what is frozen for all but its value."""
        return None if kind != WEIGHTS and name in self._frozen else key_of(kind, name, self._saved)

    def _read(self, kind: str) -> dict[str, Tensor]:
        """What this rank has to read of a kind, by the parameter's name."""
        sharding = self._sharding
        keys = {name: self._key(kind, name) for name in self._like}
        names = [name for name in self._like if keys[name] and (sharding is None or sharding.is_mine(self._dealt[name]))]
        share = {name: torch.empty(self._like[name].shape, dtype=torch.float32) for name in names}
        room: dict[str, Any] = {
            str(keys[name]): sharding.wrap(local) if sharding and name in self._experts else local
            for name, local in share.items()
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.load(room, storage_reader=FileSystemReader(self._checkpoint / STATE))
        except CheckpointException as problem:
            raise _unreadable(self._checkpoint, first_failure(problem)) from problem
        return share


def load_state(checkpoint: Path, model: nn.Module, sharding: ExpertSharding | None, kinds: tuple[str, ...]) -> SavedState:
    """The state in a checkpoint for this model under this layout, read kind by kind.

    kinds: which of model, exp_avg, exp_avg_sq and ema; sharding: None for a single process without a process group.
    Raises UserError for a damaged checkpoint and for one with another architecture, naming the tensors that differ.
    """
    state = SavedState(checkpoint, model, sharding, kinds)
    experts = expert_names(model) if sharding else set()
    wanted = {
        f"{WEIGHTS}/{name}": tuple(
            sharding.wrap(torch.empty(tensor.shape, device="meta")).shape if sharding and name in experts else tensor.shape
        )
        for name, tensor in named_tensors(model).items()
    }
    check_architecture(checkpoint, wanted, prefix=f"{WEIGHTS}/")
    return state


def saved_kinds(checkpoint: Path) -> set[str]:
    """Which of model, exp_avg, exp_avg_sq and ema a checkpoint holds. Raises UserError when it is damaged."""
    return {key.partition("/")[0] for key in _saved_shapes(checkpoint)}


def _saved_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        entries = FileSystemReader(checkpoint / STATE).read_metadata().state_dict_metadata
        return {key: tuple(entry.size) for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    except Exception as problem:  # whatever a damaged pickle raises
        raise _unreadable(checkpoint, f"{STATE}/.metadata: {reason(problem)}") from problem


def first_failure(problem: CheckpointException) -> BaseException:
    """The problem of the first rank that had one."""
    failure = next(iter(problem.failures.values()), None)
    return failure[0] if isinstance(failure, tuple) else problem


def check_architecture(checkpoint: Path, wanted: dict[str, tuple[int, ...]], prefix: str) -> None:
    """Raise UserError for a damaged checkpoint, and for one whose tensors under a prefix have other shapes. Reads no tensor."""
    saved = _saved_shapes(checkpoint)
    names = sorted(key for key in saved.keys() | wanted.keys() if key.startswith(prefix) and saved.get(key) != wanted.get(key))
    if not names:
        return
    shown = "; ".join(
        f"{key.removeprefix(prefix)}: {_shape(saved.get(key))} there, {_shape(wanted.get(key))} here" for key in names[:3]
    )
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"checkpoint {checkpoint} has another architecture ({shown}{more}): "
        f"use the model it was trained with, or start a new run (another run.dir, no init_from)"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "scalar"


def checkpoint_of(run: str) -> Path:
    """The checkpoint that `run=` names: itself, or the newest complete one of a run directory. Raises UserError for neither."""
    if is_on_hub(run):
        raise UserError(f"run={run} would be an export: give the run directory; trainer.explore and model.load take exports too")
    where = user_path(run, "run")
    try:
        checkpoint = find_checkpoint(where)
    except OSError as problem:
        raise UserError(f"run={run}: {problem.filename} cannot be read ({reason(problem)})") from problem
    if checkpoint is None and (where / EXPORTED).is_file():
        raise UserError(f"run={run} is an export, which has no checkpoints; give the run directory that it was exported from")
    if checkpoint is None:
        raise UserError(f"run={run}: no complete checkpoint there; give a run directory, or one of its checkpoints")
    return checkpoint


WEIGHTS_ARGUMENT = Argument(
    "weights",
    "KIND",
    f"{WEIGHTS} (as trained, the default), or {EMA} (the moving average of the weights that train.ema kept)",
    choices=(WEIGHTS, EMA),
)


def check_weights(kind: str, checkpoint: Path) -> str:
    """The kind of weights that `weights=` names. Raises UserError for an average that was not saved."""
    if kind == EMA and EMA not in saved_kinds(checkpoint):
        raise UserError(
            f"weights={EMA}: {checkpoint} has no moving average, because train.ema was not set; leave weights={EMA} out"
        )
    return kind


def resumed_kinds(checkpoint: Path, train: TrainConfig) -> tuple[str, ...]:
    """What a run that resumes from the checkpoint takes from it: the average only if it exists and is wanted."""
    wanted = train.ema is not None and EMA in saved_kinds(checkpoint)
    return (WEIGHTS, *MOMENTS, EMA) if wanted else (WEIGHTS, *MOMENTS)


def trained_since(state: SavedState, progress: TrainingProgress, tell: bool = False) -> dict[str, int]:
    """What TrainingProgress.trained_since becomes in a run that resumes from a state, perhaps with another train.freeze.

    tell: log a line about the parameters that are frozen or trained from here on.
    """
    freed, frozen = state.newly_trained, state.newly_frozen
    if tell and freed:
        _log.warning("trained from step %d on, with new moments: %s", progress.step + 1, _names(freed))
    if tell and frozen:
        _log.warning("frozen from step %d on, without their moments and averages: %s", progress.step + 1, _names(frozen))
    before = {name: since for name, since in progress.trained_since.items() if name not in frozen}
    return before | dict.fromkeys(sorted(freed), progress.optimizer_steps)


def _names(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{len(names)} parameters, such as {first}" if others else first
