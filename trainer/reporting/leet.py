"""The viewer in the terminal that comes with wandb."""

import shlex
import shutil
import sys
from pathlib import Path


def leet_command(run_dir: Path) -> str:
    """The command that shows the run's curves in the terminal, offline and without an account, as typed where we are now.

    It names the whole `wandb/` folder, not its newest part: each resume starts a new part there; the viewer opens the newest
    one, and the space bar adds others to the plots.
    """
    return f"{_wandb_program()} leet {shlex.quote(_from_here(run_dir / 'wandb'))}"


def _wandb_program() -> str:
    beside_python = Path(sys.executable).with_name("wandb")
    if not beside_python.exists():
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m wandb"
    # Another wandb on PATH may be too old to know `leet`.
    if shutil.which("wandb") == str(beside_python):
        return "wandb"
    return shlex.quote(_from_here(beside_python))


def _from_here(path: Path) -> str:
    """The path relative to the working directory if it is below it; links are left as they are."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
