"""What a run keeps on disk, and where it goes on from. Rank 0 decides and writes; the others follow."""

import logging
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from trainer.agree import first_reads
from trainer.checkpoint import CONFIG, TOKENIZER, find_checkpoint
from trainer.config import Config
from trainer.errors import UserError
from trainer.processes import Processes

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_run_id"


def open_run_directory(config: Config, processes: Processes) -> tuple[Path, Path | None]:
    """Make the run directory ready; returns it and the checkpoint to go on from, if any. A collective.

    Raises UserError when `resume` asks for what is not there, or a run lies there that must not be overwritten.
    """
    run_dir = Path(config.run.dir)
    checkpoint = first_reads(lambda: _prepare(config, run_dir), processes)
    return run_dir, checkpoint


def _prepare(config: Config, run_dir: Path) -> Path | None:
    checkpoint = _resume_from(config, run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            _set_aside(run_dir)
        else:
            shutil.copyfile(checkpoint / TOKENIZER, run_dir / TOKENIZER)
        (run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    except OSError as problem:
        raise UserError(
            f"the run directory {run_dir} cannot be written ({problem.strerror}): make room or choose another run.dir"
        ) from problem
    return checkpoint


def _resume_from(config: Config, run_dir: Path) -> Path | None:
    if config.resume == "auto":
        return find_checkpoint(run_dir)
    if config.resume == "never":
        found = find_checkpoint(run_dir)
        if found:
            raise UserError(f"resume=never, but {run_dir} holds a run ({found.name}): choose another run.name, or resume=auto")
        return None
    found = find_checkpoint(Path(config.resume))
    if found is None:
        raise UserError(
            f"resume={config.resume}: no complete checkpoint there; give a run directory or a checkpoint, or resume=auto to start"
        )
    return found


def _set_aside(run_dir: Path) -> None:
    """Keep what an earlier start left that never reached a checkpoint, under names that this run does not use."""
    if not (run_dir / METRICS).exists():
        return
    number = 1 + len(list(run_dir.glob("earlier-*")))
    earlier = run_dir / f"earlier-{number}"
    earlier.mkdir()
    for name in (METRICS, WANDB_ID):
        if (run_dir / name).exists():
            (run_dir / name).rename(earlier / name)
    logging.getLogger(__name__).warning("%s held a start without a checkpoint: its metrics are now in %s", run_dir, earlier)
