"""A directory belongs to one program at a time: two runs with the same name would overwrite each other's files."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from trainer.errors import UserError

FILE = ".in_use"
"""Locked by the first rank as long as its process lives; contains its name."""


def claim(run_dir: Path, key: str = "run.dir") -> None:
    """Keep an existing directory for this process until it ends. Raises UserError while another one has it.

    key: what the user sets to choose another one. If files cannot be locked, as on some cluster file systems, nothing is claimed.
    """
    with contextlib.suppress(OSError):
        file = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT, 0o666)  # never closed: that would end the lock
        _lock(file, run_dir, key)
        os.truncate(file, 0)
        os.pwrite(file, f"{_name()} on {socket.gethostname()}".encode(), 0)


def check_unclaimed(run_dir: Path) -> None:
    """Raise UserError while another process has the directory."""
    with contextlib.suppress(OSError):
        file = os.open(run_dir / FILE, os.O_RDWR)
        try:
            _lock(file, run_dir, "run.dir")
        finally:
            os.close(file)


def _lock(file: int, run_dir: Path, key: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(file, 1000, 0).decode(errors="replace")
        if _is_earlier_start(owner):
            return
        raise UserError(
            f"{run_dir} is in use by {owner or 'another run'}: wait for it to end, or choose another {key} "
            f"(if it has already ended, perhaps because its host failed, delete {run_dir / FILE})"
        ) from None


def _is_earlier_start(owner: str) -> bool:
    """Whether this same job, before SLURM requeued it, has the lock: its node is lost, and the file server does not know."""
    job = os.environ.get("SLURM_JOB_ID")
    return job is not None and owner.startswith(f"job {job} ") and not owner.startswith(_name())


def _name() -> str:
    job, start = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"job {job} (start {start})" if job else f"process {os.getpid()}"
