"""Which weights of a trained run a command means."""

from pathlib import Path

from trainer.checkpoint import saved_kinds
from trainer.checkpoint_files import find_checkpoint
from trainer.errors import UserError
from trainer.state import EMA, WEIGHTS


def checkpoint_of(run: str) -> Path:
    """The checkpoint that `run=` names: itself, or the newest complete one of a run directory. Raises UserError for neither."""
    try:
        checkpoint = find_checkpoint(Path(run).expanduser())
    except OSError as problem:
        raise UserError(f"run={run}: {problem.filename} cannot be read ({problem.strerror}): mend it") from problem
    if checkpoint is None:
        raise UserError(f"run={run}: no complete checkpoint there; give a run directory, or one of its checkpoints")
    return checkpoint


def check_weights(kind: str, checkpoint: Path) -> str:
    """The kind of weights that `weights=` names. Raises UserError for an unknown one, and for an average that was not kept."""
    if kind not in (WEIGHTS, EMA):
        raise UserError(f"weights={kind}: choose {WEIGHTS} (as trained) or {EMA} (their moving average)")
    if kind == EMA and EMA not in saved_kinds(checkpoint):
        raise UserError(f"weights={EMA}: {checkpoint} holds no moving average, as train.ema was not set; leave weights={EMA} out")
    return kind
