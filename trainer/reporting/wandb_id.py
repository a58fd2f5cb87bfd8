"""Which run of Weights & Biases a run directory belongs to: the same one after every resume, and a new one for a copy."""

import logging
import os
import secrets
from pathlib import Path

from trainer.errors import UserError, reason
from trainer.files import write_whole

_log = logging.getLogger(__name__)


def run_id_of(run_dir: Path) -> tuple[str, bool]:
    """The id of the directory's run: what WANDB_RUN_ID says, else the one it keeps, else a new one; it is kept from then on.

    And whether it is another one than before.

    `wandb_run_dir` records whose id it is, so that a copy of a run directory gets its own run: it is a copy if the directory
    named there is another one and has the same id. A moved directory leaves nothing there, and continues its run.
    Raises UserError if it cannot be written.
    """
    path, home = run_dir / "wandb_run_id", run_dir / "wandb_run_dir"
    here, given = str(run_dir.resolve()), os.environ.get("WANDB_RUN_ID")
    try:
        kept, of = _word_in(path), _word_in(home)
        run_id = given or kept
        if run_id and run_id == kept and of and _is_copy(run_dir, Path(of), kept):
            run_id = ""
        run_id = run_id or secrets.token_hex(4)  # Not from `random`: runs of one seed would share an id.
        if kept and run_id != kept:
            because = f"{run_dir} is a copy of {of}" if not given else "WANDB_RUN_ID says so"
            _log.warning("W&B run %s instead of %s, because %s", run_id, kept, because)
        if run_id != kept:
            write_whole(path, f"{run_id}\n".encode())
        if of != here:
            write_whole(home, f"{here}\n".encode())
    except OSError as problem:
        raise UserError(f"cannot write {path} ({reason(problem)}): make room or choose another run.dir") from problem
    return run_id, run_id != kept


def kept_run_id(run_dir: Path) -> str:
    """The id of the run that was recorded in the directory; "" if there is none."""
    return _word_in(run_dir / "wandb_run_id")


def _word_in(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _is_copy(run_dir: Path, original: Path, run_id: str) -> bool:
    """Whether `original` is another directory that has the same run."""
    try:
        return _word_in(original / "wandb_run_id") == run_id and not run_dir.samefile(original)
    except OSError:  # not readable, so no run continues there either
        return False


def is_shared(run_dir: Path, is_new: bool, wanted: bool) -> bool:
    """Whether several nodes write to the directory's run. It stays as it began, because W&B would overwrite what is there.

    A run that is shared counts its records in another way, and those of one that was not would be lost
    (https://github.com/wandb/wandb/issues/12269).
    """
    mark = run_dir / "wandb_run_shared"
    if not is_new:
        return mark.exists()
    if wanted:
        write_whole(mark, b"")
    else:
        mark.unlink(missing_ok=True)
    return wanted
