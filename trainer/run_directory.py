"""What a run keeps on disk, and where it goes on from. Rank 0 decides and writes; the others follow."""

import errno
import logging
import os
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from trainer.agree import first_reads
from trainer.checkpoint import CONFIG, TOKENIZER, complete_checkpoints, find_checkpoint
from trainer.compose import load_config
from trainer.config import Config
from trainer.errors import UserError
from trainer.processes import Processes

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_run_id"


def open_run_directory(config: Config, processes: Processes) -> tuple[Path, Path | None]:
    """Make the run directory ready; returns it and the checkpoint to go on from, if any. A collective.

    What lies there is neither deleted nor overwritten; what would be in the way is moved into `earlier-1`, `earlier-2`, …
    Raises UserError when `resume` asks for what is not there, or a run lies there that must not be overwritten.
    """
    run_dir = Path(config.run.dir)
    checkpoint = first_reads(lambda: _prepare(config, run_dir), processes)
    return run_dir, checkpoint


def inspect_run_directory(config: Config) -> Path | None:
    """The checkpoint that the run would go on from, if any; changes nothing.

    Raises UserError where `open_run_directory` would, as far as can be told without writing.
    """
    run_dir = Path(config.run.dir)
    try:
        checkpoint = resume_from(config, run_dir)
        place = existing_part(run_dir)
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem
    return checkpoint


def existing_part(path: Path) -> Path:
    """The path itself if it exists, else the nearest parent that does."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def write_config(config: Config, run_dir: Path, processes: Processes) -> None:
    """Keep the configuration beside the results, once it is known that the run can start with it. A collective."""
    first_reads(lambda: _write_config(config, run_dir), processes)


def _prepare(config: Config, run_dir: Path) -> Path | None:
    try:
        checkpoint = resume_from(config, run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            _set_aside_start(run_dir)
        else:
            _set_aside_later(run_dir, checkpoint)
            shutil.copyfile(checkpoint / TOKENIZER, run_dir / TOKENIZER)
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem
    return checkpoint


def _write_config(config: Config, run_dir: Path) -> None:
    try:
        (run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem


def _unwritable(run_dir: Path, problem: OSError) -> UserError:
    where = problem.filename or run_dir
    return UserError(
        f"the run directory {run_dir} cannot be used ({where}: {problem.strerror}): mend it or choose another run.dir"
    )


def resume_from(config: Config, run_dir: Path) -> Path | None:
    """The checkpoint that a run in this directory goes on from, None for a start. Reads only.

    Raises UserError when `resume` asks for what is not there, or a run lies there that must not be overwritten.
    """
    newest = find_checkpoint(run_dir)
    if config.resume == "auto":
        return newest
    if config.resume == "never":
        if newest:
            raise UserError(f"resume=never, but {run_dir} holds a run ({newest.name}): choose another run.name, or resume=auto")
        return None
    if newest and _was_started_with(config.resume, run_dir):
        return newest  # the same command again, as after a stop
    found = find_checkpoint(Path(config.resume))
    if found is None:
        raise UserError(
            f"resume={config.resume}: no complete checkpoint there; give a run directory or a checkpoint, or resume=auto to start"
        )
    if newest and not _is_of(run_dir, found):
        raise UserError(
            f"resume={config.resume}, but {run_dir} holds another run ({newest.name}): choose another run.name, or resume=auto"
        )
    return found


def _was_started_with(resume: str, run_dir: Path) -> bool:
    return (run_dir / CONFIG).is_file() and load_config(run_dir / CONFIG).get("resume") == resume


def _is_of(run_dir: Path, checkpoint: Path) -> bool:
    return checkpoint.resolve().is_relative_to(run_dir.resolve())


def _set_aside_start(run_dir: Path) -> None:
    """Keep what an earlier start left that never reached a checkpoint, under names that this run does not use."""
    # A tokenizer alone was trained by a start that failed soon after; this one may be about other captions.
    if not (run_dir / METRICS).exists():
        (run_dir / TOKENIZER).unlink(missing_ok=True)
        return
    left = [run_dir / name for name in (METRICS, WANDB_ID, TOKENIZER, CONFIG)]
    earlier = _move([path for path in left if path.exists()], run_dir)
    logging.getLogger(__name__).warning("%s held a start without a checkpoint: it is now in %s", run_dir, earlier)


def _set_aside_later(run_dir: Path, checkpoint: Path) -> None:
    """When the run goes back to an older checkpoint of its own, keep the newer ones where no resume takes them for its last."""
    if not _is_of(run_dir, checkpoint):
        return
    later = [path for path in complete_checkpoints(run_dir) if path.name > checkpoint.name]
    if later:
        earlier = _move(later, run_dir)
        logging.getLogger(__name__).warning("going back to %s: the checkpoints after it are now in %s", checkpoint.name, earlier)


def _move(paths: list[Path], run_dir: Path) -> Path:
    number = 1
    while (run_dir / f"earlier-{number}").exists():
        number += 1
    earlier = run_dir / f"earlier-{number}"
    earlier.mkdir()
    for path in paths:
        path.rename(earlier / path.name)
    return earlier
