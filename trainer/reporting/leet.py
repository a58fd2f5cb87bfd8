"""The viewer in the terminal that comes with wandb: how to start it, and what it shows first.

It shows metrics in alphabetical order and cuts names that are wider than their plots, so that of a run's seventy it would open on
a page of retrieval curves whose names look all the same.
"""

import contextlib
import json
import shlex
import shutil
import sys
from pathlib import Path

FIRST_PAGE = ("train/loss_contrastive", "routing/success/image", "routing/success/text", "eval/zeroshot/top1")
VIEW = {"metrics_filter": {"query": f"^({'|'.join(FIRST_PAGE)})$"}}
"""What the viewer remembers of a folder; ctrl+l shows all metrics."""
SETTINGS = {
    "workspace_overview_visible": False,
    "workspace_metrics_grid": {"rows": 4, "cols": 1},
    "metrics_grid": {"rows": 2, "cols": 2},
}
"""Of the viewer as a whole."""


def leet_command(run_dir: Path) -> str:
    """The command that shows the run's curves in the terminal, offline and without an account, as typed where we are now.

    It names the whole `wandb/` folder, not its newest part: each resume starts a new part there; the viewer opens the newest
    one, and the space bar adds others to the plots. Its settings are those of `prepare_leet`, not the user's own.
    """
    folder = _from_here(run_dir / "wandb")
    return f"env {shlex.quote(f'WANDB_CONFIG_DIR={folder}')} {_wandb_program()} leet {shlex.quote(folder)}"


def prepare_leet(folder: Path) -> None:
    """Let the viewer open on the loss and the routing success, with plots wide enough for their names, in this `wandb/` folder.

    What it keeps there itself, when somebody chooses another view, stays.
    """
    for name, content in ((".wandb-leet.json", VIEW), ("wandb-leet.json", SETTINGS)):
        with contextlib.suppress(OSError):  # a convenience: no reason to record nothing
            if not (folder / name).exists():
                (folder / name).write_text(json.dumps(content, indent=2) + "\n")


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
