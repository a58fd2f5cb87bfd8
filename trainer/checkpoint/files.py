"""A checkpoint as files, and which ones a run has. No tensors and no processes here.

    checkpoints/step-00001000/
        state/           tensors, each rank's share (torch.distributed.checkpoint)
        tokenizer.model
        config.yaml
        progress.json    what a resume needs besides tensors
        complete         the marker, written last: size and SHA-256 of every other file
    checkpoints/best -> step-00000900

A checkpoint is written under a hidden name and renamed when it is complete; an old one is hidden before it is deleted. So a
checkpoint that has its final name, but no marker or one that does not match, was damaged from outside.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import UserError, reason

MARKER = "complete"
PROGRESS = "progress.json"
TOKENIZER = "tokenizer.model"
CONFIG = "config.yaml"
STATE = "state"
BEST = "best"
_NAME = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.step-\d{8,}\.(partial|deleted)")


@dataclass(frozen=True)
class FileRecord:
    """What a file must match for its checkpoint to be sound."""

    bytes: int
    sha256: str


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The path of a step's checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def partial_path(final: Path) -> Path:
    """The path of a checkpoint until it is complete."""
    return final.with_name(f".{final.name}.partial")


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Everything in a run that has a checkpoint's name, sound or damaged, oldest first.

    Raises OSError for a folder that cannot be read, and for anything else in its place, such as a link to a missing disk.
    """
    folder = run_dir / "checkpoints"
    if not folder.is_dir() and os.path.lexists(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run that have their marker, oldest first."""
    return [path for path in all_checkpoints(run_dir) if (path / MARKER).is_file()]


def checkpoint_itself(where: Path) -> Path | None:
    """The checkpoint that a path names, sound or damaged, with `checkpoints/best` followed; None for anything else."""
    named = where.resolve() if where.is_symlink() else where
    return named if (named / MARKER).is_file() or (_NAME.fullmatch(named.name) and named.is_dir()) else None


def find_checkpoint(where: Path) -> Path | None:
    """`where` itself if it is a checkpoint, else the newest complete one of the run directory `where`, if any."""
    itself = checkpoint_itself(where)
    if itself is not None:
        return itself
    found = complete_checkpoints(where)
    return found[-1] if found else None


def record_of(path: Path) -> FileRecord:
    """Size and digest of a file as it is on disk."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def write_marker(checkpoint: Path, records: dict[str, FileRecord]) -> None:
    """Mark a checkpoint as complete with the records of all its files, by their path in it."""
    marker = checkpoint / MARKER
    marker.write_text(json.dumps({name: asdict(record) for name, record in sorted(records.items())}, indent=1) + "\n")
    sync(marker)
    sync(checkpoint)


def read_marker(checkpoint: Path) -> dict[str, FileRecord]:
    """The records of all files of a checkpoint. Raises UserError, with a few words only, if there is no complete marker."""
    try:
        records = json.loads((checkpoint / MARKER).read_text())
        return {name: FileRecord(**record) for name, record in records.items()}
    except FileNotFoundError:
        raise UserError(f"its last file, '{MARKER}', is missing") from None
    except OSError as problem:
        raise UserError(f"{MARKER}: {reason(problem)}") from None
    except (ValueError, TypeError, AttributeError) as problem:
        raise UserError(f"{MARKER}: not readable ({type(problem).__name__})") from None


def damage_among(checkpoint: Path, records: dict[str, FileRecord], names: list[str], digests: bool = True) -> str | None:
    """What is wrong with the first of the named files that differs from its record, else None. digests: compare these too."""
    for name in names:
        try:
            size = (checkpoint / name).stat().st_size
            found = record_of(checkpoint / name) if digests else None
        except OSError as problem:
            return f"{name}: {reason(problem)}"
        if size != records[name].bytes:
            return f"{name} has {size} bytes instead of {records[name].bytes}"
        if found is not None and found != records[name]:
            return f"{name} has changed since it was written: its SHA-256 differs"
    return None


def publish(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name."""
    if final.exists():  # the same step written again
        delete(final)
    partial.rename(final)
    sync(final.parent)


def point_best_to(final: Path) -> None:
    """Point `checkpoints/best` to a checkpoint."""
    link = final.with_name(BEST)
    temporary = final.with_name(f".{BEST}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(final.name, target_is_directory=True)
    temporary.replace(link)


def is_finite(checkpoint: Path) -> bool:
    """Whether the last step before a checkpoint was finite; assumed so if the checkpoint does not say."""
    try:
        return not json.loads((checkpoint / PROGRESS).read_text()).get("nonfinite_in_a_row", 0)
    except (OSError, ValueError, AttributeError):
        return True


def delete_old(run_dir: Path, newest: Path, keep: int, keep_every: int | None) -> None:
    """Delete all checkpoints but `newest`, the `keep - 1` before it, the best, and those of every `keep_every`-th step.

    One that was written while steps were not finite does not count: it stays only as long as it is the newest, in addition to
    `keep` others. Ones later than `newest`, which exist after going back to an earlier one, count like those before it.
    """
    folder = run_dir / "checkpoints"
    best = (folder / BEST).resolve().name
    others = [path for path in complete_checkpoints(run_dir) if path != newest]
    finite = [path for path in others if is_finite(path)]
    spared = finite[max(0, len(finite) - (keep - is_finite(newest))) :]
    for old in others:
        if old not in spared and old.name != best and not (keep_every and step_of(old) % keep_every == 0):
            delete(old)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint so that, if this is interrupted, no partial checkpoint keeps its name.

    What cannot be deleted now, such as a file on NFS that is being read, is left to `sweep_up`.
    """
    hidden = checkpoint.with_name(f".{checkpoint.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep_up(run_dir: Path) -> None:
    """Remove what interrupted writes or deletions left. Nothing may be writing there."""
    folder = run_dir / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if _HIDDEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
