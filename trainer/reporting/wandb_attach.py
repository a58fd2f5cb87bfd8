"""Adds an artifact to a run of Weights & Biases that has ended."""

import os
import shlex
from pathlib import Path

import wandb

from trainer.config.schema import LogConfig
from trainer.errors import UserError, reason
from trainer.reporting.artifacts import Files
from trainer.reporting.wandb_id import kept_run_id
from trainer.reporting.wandb_login import choose_mode, quiet_settings
from trainer.reporting.wandb_run import PROJECT, QUIET


def check_attachable(run_dir: Path, log: LogConfig) -> str:
    """How W&B can be reached for a run: "online" or "offline". Raises UserError when it cannot, or has no such run."""
    mode = choose_mode("auto" if log.wandb == "online" else log.wandb)  # training insisted on the server, not this
    if mode == "disabled":
        said = "log.wandb=disabled" if log.wandb == "disabled" else "WANDB_MODE=disabled"
        raise UserError(f"W&B is off for {run_dir} ({said})")
    if not kept_run_id(run_dir):
        raise UserError(f"{run_dir} has no run in W&B (no wandb_run_id)")
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir} cannot be written, where W&B keeps its files")
    return mode


def attach(run_dir: Path, log: LogConfig, files: Files) -> str:
    """Make files an artifact of the directory's run; returns a sentence about it.

    Offline, W&B's files are apart from the run's, so that a viewer of its curves does not open on a part without any.
    Raises UserError as `check_attachable`, and when W&B fails.
    """
    mode = check_attachable(run_dir, log)
    folder = run_dir / "wandb" / "artifacts"
    given = quiet_settings()
    settings = wandb.Settings(
        mode=mode,  # type: ignore[arg-type]  # one of its words
        # The run's commit, machine and curves of the machine are those of its training.
        x_disable_stats=True,
        x_disable_meta=True,
        disable_git=True,
        **QUIET,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=log.project or given.project or PROJECT,
            entity=log.entity or given.entity,
            id=kept_run_id(run_dir),
            resume="allow",
            dir=os.fspath(folder),
            settings=settings,
        )
        files.name(run)
        place = Path(run.dir).parent  # W&B's own `files` is in it
        run.finish()
    except Exception as problem:  # wandb raises its own errors, TimeoutError, OSError and more
        raise UserError(f"W&B could not take {files.path} ({reason(problem)})") from problem
    how = "copied to" if files.upload else "referred to by"
    later = f"; `wandb sync {shlex.quote(str(place))}` sends that to the server" if mode == "offline" else ""
    return f"{how} W&B's run {kept_run_id(run_dir)}, as {files.what}-{kept_run_id(run_dir)}{later}"
