"""What a run keeps on disk, and where it resumes from. Rank 0 decides and writes; the others follow."""

import errno
import logging
import os
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from model.hub import local_folder
from model.secrets import cleared
from trainer.checkpoint.exported import is_exported
from trainer.checkpoint.files import (
    BEST,
    CONFIG,
    TOKENIZER,
    all_checkpoints,
    checkpoint_itself,
    complete_checkpoints,
    is_finite,
    step_of,
    sweep_up,
)
from trainer.checkpoint.identity import check_identity, warn_of_other_pictures
from trainer.checkpoint.load import check_sound, damage, newest_sound, read_progress
from trainer.checkpoint.outside import find_outside
from trainer.checkpoint.start import Start, start_from, start_from_export, start_from_outside
from trainer.config.compose import load_config
from trainer.config.schema import Config
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes
from trainer.errors import UserError, reason
from trainer.files import write_whole
from trainer.reporting.loads import LOADS
from trainer.reporting.log_lines import LOG
from trainer.training.lock import check_unclaimed, claim

METRICS = "metrics.jsonl"
PREDICTIONS = "predictions"
EXPERTS = "experts"
REPORT = "report.html"
WANDB_ID = "wandb_run_id"
NEW_WEIGHTS = "leave out init_from to start with new weights"


def open_run_directory(config: Config, processes: Processes) -> tuple[Path, Path | None]:
    """Prepare the run directory; returns it and the checkpoint to resume from, if any. A collective.

    Existing files are neither deleted nor overwritten; any in the way are moved into `earlier-1`, `earlier-2`, …
    Raises UserError when what `resume` asks for is missing or damaged, or when a run there must not be overwritten or is
    still training.
    """
    run_dir = Path(config.run.dir)
    checkpoint = resume_from(config, run_dir, processes)
    if checkpoint is not None:
        first_reads(lambda: _check_same_model(checkpoint, config, f"start a new run with {_another(config)}"), processes)
    first_reads(lambda: _prepare(run_dir, checkpoint), processes)
    if checkpoint is not None and processes.is_first:
        _warn_of_other_order(config, checkpoint)
    return run_dir, checkpoint


def inspect_run_directory(config: Config, alone: Processes) -> tuple[Path | None, Start | None]:
    """The checkpoint that a run would resume from, or the weights that it would start with, if any; changes nothing.

    Raises UserError where `open_run_directory` and `initial_weights` would, as far as one process can tell quickly and without
    writing.
    """
    run_dir = Path(config.run.dir)
    check_unclaimed(run_dir)
    try:
        checkpoint = resume_from(config, run_dir, alone, digests=False)
        place = existing_part(run_dir)
        if run_dir.is_symlink() and not run_dir.exists():
            raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere", str(run_dir))
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        _check_appendable(run_dir / LOG)
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem
    if checkpoint is not None:
        _check_same_model(checkpoint, config, f"start a new run with {_another(config)}")
    if checkpoint is not None or config.init_from is None:
        return checkpoint, None
    return None, _start(config, alone, digests=False)


def _check_appendable(path: Path) -> None:
    """Raises OSError for a file that cannot be opened again."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def existing_part(path: Path) -> Path:
    """The path itself if it exists, else the nearest parent that does."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def initial_weights(config: Config, run_dir: Path, processes: Processes) -> Start | None:
    """The weights that a new run starts with (`init_from`), None for new ones. A collective.

    Its tokenizer, which its embedding table belongs to, becomes the run's, unless `data.tokenizer` names one.
    """
    if config.init_from is None:
        return None
    start = _start(config, processes)

    def take_tokenizer() -> None:
        if config.data.tokenizer is None:
            write_whole(run_dir / TOKENIZER, start.tokenizer())

    first_reads(take_tokenizer, processes)
    return start


def _start(config: Config, processes: Processes, digests: bool = True) -> Start:
    """How the run starts from what init_from names: an export, weights from elsewhere, or the newest sound checkpoint.

    A collective.
    """
    asked = str(config.init_from)
    first_reads(lambda: local_folder(asked), processes)  # of an export on the Hub; the other ranks find it in the cache
    place = local_folder(asked)
    if first_reads(lambda: is_exported(place), processes):
        return first_reads(lambda: start_from_export(place, config, NEW_WEIGHTS), processes)
    outside = first_reads(lambda: find_outside(place), processes)
    if outside is not None:
        return first_reads(lambda: start_from_outside(outside, config, NEW_WEIGHTS), processes)
    found = _sound_in(place, f"init_from={config.init_from}", processes, digests)
    return first_reads(lambda: start_from(found, config, NEW_WEIGHTS), processes)


def write_config(config: Config, run_dir: Path, processes: Processes) -> None:
    """Save the configuration with the results, once it is known that the run can start with it. A collective."""
    first_reads(lambda: _write_config(config, run_dir), processes)


def _prepare(run_dir: Path, checkpoint: Path | None) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        claim(run_dir)
        sweep_up(run_dir)
        if checkpoint is None:
            _set_aside_start(run_dir)
        else:
            _set_aside_later(run_dir, checkpoint)
            shutil.copyfile(checkpoint / TOKENIZER, run_dir / TOKENIZER)
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem


def _write_config(config: Config, run_dir: Path) -> None:
    try:
        # Atomically: a start that is killed here must not leave a partial file for the next one.
        write_whole(run_dir / CONFIG, OmegaConf.to_yaml(cleared(OmegaConf.to_container(OmegaConf.structured(config)))).encode())
    except OSError as problem:
        raise _unwritable(run_dir, problem) from problem


def _unwritable(run_dir: Path, problem: OSError) -> UserError:
    where = problem.filename2 or problem.filename or run_dir
    return UserError(
        f"the run directory {run_dir} cannot be used ({where}: {reason(problem)}): fix this or choose another run.dir"
    )


def resume_from(config: Config, run_dir: Path, processes: Processes, digests: bool = True) -> Path | None:
    """The sound checkpoint from which a run resumes, according to `resume`; None for a new run; changes nothing. A collective.

    digests: as in `trainer.checkpoint.load.damage`.
    """
    if config.resume == "auto":
        return newest_sound(run_dir, processes, digests)
    kept = first_reads(lambda: all_checkpoints(run_dir), processes)
    if config.resume == "never":
        sound = next((path for path in reversed(kept) if damage(path, processes, digests) is None), None)
        if sound:
            raise UserError(
                f"resume=never, but {run_dir} contains a run ({sound.name}): choose {_another(config)}, or resume=auto"
            )
        return None
    same_command = first_reads(lambda: _was_started_with(config.resume, run_dir), processes)
    if kept and same_command:
        return newest_sound(run_dir, processes, digests)  # the same command again, as after a stop
    found = _sound_in(Path(config.resume), f"resume={config.resume}", processes, digests)
    if kept and not _is_of(run_dir, found):
        raise UserError(
            f"resume={config.resume}, but {run_dir} contains another run ({kept[-1].name}): "
            f"choose {_another(config)}, or resume=auto"
        )
    return found


def _check_same_model(checkpoint: Path, config: Config, otherwise: str) -> None:
    check_identity(checkpoint, config, otherwise)
    warn_of_other_pictures(checkpoint, config)


def _another(config: Config) -> str:
    """What a user changes to get another run directory."""
    return "another run.name" if config.run.dir == f"runs/{config.run.name}" else "another run.dir"


def _sound_in(where: Path, asked: str, processes: Processes, digests: bool = True) -> Path:
    """The checkpoint that `where` is, or the newest sound one of the run directory that it is. A collective."""
    itself = first_reads(lambda: checkpoint_itself(where), processes)
    if itself is not None:
        check_sound(itself, processes, digests)
        return itself
    found = newest_sound(where, processes, digests, "repair them, or name another run or checkpoint")
    if found is None:
        raise UserError(f"{asked}: no complete checkpoint there; give a run directory, or one of its checkpoints")
    return found


def _was_started_with(resume: str, run_dir: Path) -> bool:
    return (run_dir / CONFIG).is_file() and load_config(run_dir / CONFIG).get("resume") == resume


def _is_of(run_dir: Path, checkpoint: Path) -> bool:
    return checkpoint.resolve().is_relative_to(run_dir.resolve())


def _warn_of_other_order(config: Config, checkpoint: Path) -> None:
    """Warn if settings differ on which a resume depends to find its place in the data."""
    if not (checkpoint / CONFIG).is_file():
        return
    streams = read_progress(checkpoint).streams if config.data.streams else None
    if streams is not None and streams != config.data.streams:
        logging.getLogger(__name__).warning(
            "data.streams=%s, but %s was trained with %s: from here on the order of the data differs, so some pairs of this "
            "epoch will be seen twice and some not at all",
            *(config.data.streams, checkpoint.name, streams),
        )
    before, now = load_config(checkpoint / CONFIG), OmegaConf.structured(config)
    for key in ("seed", "data.shuffle_buffer"):
        was, wanted = OmegaConf.select(before, key), OmegaConf.select(now, key)
        if was != wanted:
            logging.getLogger(__name__).warning(
                "%s=%s, but %s was trained with %s: from here on the order of the data differs, so some pairs of this epoch "
                "will be seen twice and some not at all",
                *(key, wanted, checkpoint.name, was),
            )


def _set_aside_start(run_dir: Path) -> None:
    """Move what an earlier start without any checkpoint left to names that this run does not use."""
    # A tokenizer on its own is from a start that failed soon after; this run may have other captions.
    if not (run_dir / METRICS).exists() and not all_checkpoints(run_dir):
        (run_dir / TOKENIZER).unlink(missing_ok=True)
        return
    left = [run_dir / name for name in (METRICS, LOADS, REPORT, PREDICTIONS, EXPERTS, WANDB_ID, TOKENIZER, CONFIG, "checkpoints")]
    earlier = _move([path for path in left if path.exists()], run_dir)
    logging.getLogger(__name__).warning(
        "%s had no usable checkpoint from an earlier start: its files are now in %s", run_dir, earlier
    )


def _set_aside_later(run_dir: Path, checkpoint: Path) -> None:
    """When the run goes back to an older checkpoint of its own, move the newer ones where no resume will find them."""
    if not _is_of(run_dir, checkpoint):
        return
    later = [path for path in all_checkpoints(run_dir) if step_of(path) > step_of(checkpoint)]
    if later:
        earlier = _set_aside(later, run_dir)
        logging.getLogger(__name__).warning("going back to %s: later checkpoints are now in %s", checkpoint.name, earlier)


def leave_nonfinite(run_dir: Path, processes: Processes) -> tuple[Path | None, Path | None]:
    """Move the checkpoints written since steps stopped being finite where no resume will find them. A collective.

    Returns the newest one from before, if any, and the new place of the others, if there were any.
    """
    return first_reads(lambda: _leave_nonfinite(run_dir), processes)


def _leave_nonfinite(run_dir: Path) -> tuple[Path | None, Path | None]:
    kept = complete_checkpoints(run_dir)
    good = next((path for path in reversed(kept) if is_finite(path)), None)
    bad = kept[kept.index(good) + 1 :] if good else kept
    return good, _set_aside(bad, run_dir) if bad else None


def _set_aside(checkpoints: list[Path], run_dir: Path) -> Path:
    """Move checkpoints of a run into a separate folder, which is returned."""
    earlier = _move(checkpoints, run_dir)
    best = run_dir / "checkpoints" / BEST
    if not best.exists():
        best.unlink(missing_ok=True)  # it pointed to one of them
    return earlier


def _move(paths: list[Path], run_dir: Path) -> Path:
    number = 1
    while (run_dir / f"earlier-{number}").exists():
        number += 1
    earlier = run_dir / f"earlier-{number}"
    earlier.mkdir()
    for path in paths:
        path.rename(earlier / path.name)
    return earlier
