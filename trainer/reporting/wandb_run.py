"""Weights & Biases: a run that survives resumes, and that neither makes training wait nor ends it if it fails."""

import json
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import wandb

import trainer
from model.secrets import cleared
from trainer.config.schema import LogConfig
from trainer.errors import UserError, reason
from trainer.reporting.alerts import Alert
from trainer.reporting.artifacts import Files
from trainer.reporting.background import Background
from trainer.reporting.leet import prepare_leet
from trainer.reporting.loads import Loads
from trainer.reporting.summaries import best_of, best_values, better
from trainer.reporting.wandb_id import is_shared, run_id_of
from trainer.reporting.wandb_login import choose_mode, quiet_settings
from trainer.reporting.wandb_media import heat_maps

_log = logging.getLogger(__name__)
PROJECT = "limoe"
"""W&B's project when neither log.project nor WANDB_PROJECT names one."""
JOB_TYPE = "train"
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0  # After that, what is left to upload stays on disk for `wandb sync`.
_GRACE_SECONDS = 10.0  # wandb's own time limits end a little later
_POLL_SECONDS = 1.0
QUIET: dict[str, Any] = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "init_timeout": _INIT_SECONDS,
    "finish_timeout": _FINISH_SECONDS,
}


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, and how the first tells the others, once, where they find it in W&B."""

    count: int = 1
    tell: Callable[[str], None] = field(default=lambda where: None)
    """Called on the first node: with JSON for `NodeMetrics`, or "" if the others shall write nothing."""


class WandbRun:
    """A run of Weights & Biases, or nothing if disabled. All calls to wandb are made in the background, in order."""

    def __init__(self, log: LogConfig, run_dir: Path, run_name: str, config: dict[str, Any], nodes: Nodes) -> None:
        """Use `start`."""
        self._log_config, self._run_dir, self._run_name, self._config, self._nodes = log, run_dir, run_name, config, nodes
        self._run: wandb.Run | None = None
        self._mode = "disabled"
        self._refusal: UserError | None = None
        self._background: Background | None = None
        self._begun = threading.Event()
        self._defined: set[str] = set()
        self._earlier: dict[str, float] = {}

    @classmethod
    def start(
        cls,
        log: LogConfig,
        run_dir: Path,
        run_name: str,
        config: dict[str, Any],
        nodes: Nodes | None = None,
        earlier: Path | None = None,
    ) -> "WandbRun":
        """Start or resume the run whose id is in `run_dir/wandb_run_id`; its files go under `run_dir/wandb/`.

        Returns at once, except for log.wandb=online, which waits for the server's answer. log.wandb=auto is online when logged
        in and the server can be reached, else offline. What `log` leaves open is up to W&B's own variables (WANDB_PROJECT,
        WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_NOTES, WANDB_JOB_TYPE), then to our defaults.
        earlier: the metrics.jsonl of the run that this one resumes, for the best values so far.
        Raises UserError for log.wandb=online without a login or a server that accepts it, and if the id cannot be written.
        """
        run = cls(log, run_dir, run_name, config, nodes or Nodes())
        if log.wandb == "disabled":
            run._begun.set()
            run._nodes.tell("")
            return run
        run_id, is_new = run_id_of(run_dir)
        run._background = Background("wandb")
        run._background.do(partial(run._begin, run_id, is_new, earlier))
        if log.wandb == "online":
            run._begun.wait()
            if run._refusal:
                raise run._refusal
        return run

    @property
    def mode(self) -> str:
        """The outcome: "online", "offline" or "disabled". Waits until it is known."""
        self._begun.wait(_INIT_SECONDS + _GRACE_SECONDS)
        return self._mode

    def log(self, step: int, metrics: Mapping[str, float], loads: Loads | None = None) -> None:
        """Log the metrics of a step. A step may come again after a resume; no point is dropped because of that.

        loads: of every expert, which become heat maps.
        """
        self._do(f"failed at step {step}", partial(self._write, step, dict(metrics), loads or {}))

    def alert(self, alert: Alert) -> None:
        """Send an alert: a message to those who have asked W&B for such."""
        self._do("could not send an alert", partial(_alert, alert), is_extra=True)

    def show(self, step: int, media: Callable[[], Mapping[str, Any]]) -> None:
        """Log pictures or tables of a step (trainer.reporting.wandb_media), which `media` makes in the background."""
        self._do(f"has no pictures of step {step}", lambda run: run.log({"step": step, **media()}), is_extra=True)

    def checkpoint(self, path: Path, step: int, kind: str) -> None:
        """Name a checkpoint as an artifact of the run: a reference to the files where they are. kind: "best" or "last"."""
        files = Files("checkpoint", "model", path, {"step": step}, (kind, f"step-{step}"))
        self._do(f"could not name {path}", files.name)

    def profile(self, path: Path) -> None:
        """Name the folder of profiles as an artifact of the run, likewise."""
        self._do(f"could not name {path}", Files("profile", "profile", path).name)

    def finish(self, exit_code: int = 0, stopped: bool = False) -> None:
        """Upload what is left, for a minute at most, and mark the run as finished (0), preempted (`stopped`) or failed."""
        if self._background is None:
            return
        self._background.do(partial(self._finish, exit_code, stopped))
        if not self._background.wait(_INIT_SECONDS + _FINISH_SECONDS + _GRACE_SECONDS):
            _log.warning("wandb does not end: what it has not uploaded is in %s", self._run_dir / "wandb")
        self._background = None

    def _begin(self, run_id: str, is_new: bool, earlier: Path | None) -> None:
        """In the background: start online, else offline, else not at all."""
        log = self._log_config
        try:
            mode = choose_mode(log.wandb)
            while mode != "disabled" and self._run is None:
                mode = self._attempt(run_id, is_new, mode)
            if self._run is not None:
                prepare_leet(self._run_dir / "wandb")
            if self._run is not None and earlier is not None:
                self._earlier = best_values(earlier.read_text(errors="replace").splitlines())
            self._mode = mode
        except UserError as problem:
            self._refusal = problem
        except Exception as problem:  # wandb raises its own errors, TimeoutError, OSError and more; none may end a run.
            _log.warning("wandb cannot be used (%s): the run continues without it", reason(problem))
        finally:
            if self._mode != "online":
                self._nodes.tell("")
            self._begun.set()

    def _attempt(self, run_id: str, is_new: bool, mode: str) -> str:
        """Start in this mode; the mode to try next, which is the same after a success."""
        log, nodes = self._log_config, self._nodes
        _warn_of_unheeded()
        several = nodes.count > 1 and log.system_metrics == "nodes"
        shared = is_shared(self._run_dir, is_new, several and mode == "online") and mode == "online"
        if several and not shared:
            why = "an offline run cannot be shared" if mode == "offline" else "the run began on a single node"
            _log.warning("W&B gets the system metrics of the first of %d nodes only: %s", nodes.count, why)
        try:
            self._run = _init(log, self._run_dir, self._run_name, self._config, run_id, "shared" if shared else mode)
        except Exception as problem:  # See `_begin`.
            if log.wandb == "online":
                raise UserError(
                    f"log.wandb=online, but wandb could not start ({reason(problem)}): fix this, or use log.wandb=offline"
                ) from problem
            instead = "offline" if mode == "online" else "without it"
            _log.warning("wandb could not start %s (%s): the run continues %s", mode, reason(problem), instead)
            wandb.teardown()  # The remains of the failed run still have its id.
            return "offline" if mode == "online" else "disabled"
        if shared:
            run = self._run
            place = {"entity": run.entity, "project": run.project, "id": run.id, "host": socket.gethostname()}
            nodes.tell(json.dumps(place))
        elif mode == "online":
            nodes.tell("")
        return mode

    def _do(self, failure: str, work: Callable[[wandb.Run], None], is_extra: bool = False) -> None:
        if self._background is not None:
            self._background.do(partial(self._try, failure, work, is_extra))

    def _try(self, failure: str, work: Callable[[wandb.Run], None], is_extra: bool) -> None:
        """In the background: do something with the run, and after a failure go on without it, or, of an extra, without that."""
        if self._run is None:
            return
        try:
            work(self._run)
        except Exception as problem:  # See `_begin`.
            _log.warning("wandb %s (%s): training continues without it", failure, reason(problem))
            if not is_extra:
                self._run = None

    def _write(self, step: int, metrics: dict[str, float], loads: Loads, run: wandb.Run) -> None:
        for name in metrics.keys() - self._defined:
            # wandb counts from the resume on; what was better before is in our hands.
            known = name in self._earlier
            best = best_of(name)
            run.define_metric(name, step_metric="step", summary=f"{best},last" if best and not known else None)
            self._defined.add(name)
        run.log({"step": step, **metrics, **heat_maps(loads)})
        best_ones = {name: metrics[name] for name in metrics.keys() & self._earlier.keys()}
        if best_ones:
            self._earlier |= {name: better(name, value, self._earlier[name]) for name, value in best_ones.items()}
            run.summary.update(
                {name: {str(best_of(name)): self._earlier[name], "last": value} for name, value in best_ones.items()}
            )

    def _finish(self, exit_code: int, stopped: bool) -> None:
        if self._run is None:
            return
        try:
            if stopped:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)
        except Exception as problem:  # See `_begin`.
            _log.warning("wandb could not finish (%s): its files are complete on disk", reason(problem))
        self._run = None


class NodeMetrics:
    """The system metrics of a node other than the first, in the same run of W&B. Whatever fails here only leaves them out."""

    def __init__(self, told: Callable[[], str | None]) -> None:
        """told: what the first node says to `Nodes.tell`, or None until then."""
        self._ends = threading.Event()
        self._background = Background("wandb of this node")
        self._background.do(partial(self._record, told))

    def finish(self) -> None:
        """Upload what is left, for a minute at most."""
        self._ends.set()
        self._background.wait(_FINISH_SECONDS + _GRACE_SECONDS)

    def _record(self, told: Callable[[], str | None]) -> None:
        try:
            where = told()
            while where is None and not self._ends.wait(_POLL_SECONDS):
                where = told()
            if where:
                self._write(json.loads(where))
        except Exception as problem:  # See `WandbRun`.
            _log.warning("W&B gets no system metrics of %s (%s)", socket.gethostname(), reason(problem))

    def _write(self, where: dict[str, str]) -> None:
        quiet_settings()
        with tempfile.TemporaryDirectory() as folder:  # the run's own may be on a disk that the first node writes to as well
            settings = wandb.Settings(
                mode="shared",
                x_primary=False,
                x_update_finish_state=False,
                x_label=socket.gethostname(),
                host=where["host"],  # or the run would be shown as this node's
                x_skip_transaction_log=True,
                disable_git=True,
                **QUIET,
            )
            run = wandb.init(
                entity=where["entity"],
                project=where["project"],
                id=where["id"],
                resume="allow",
                dir=folder,
                settings=settings,
            )
            self._ends.wait()
            run.finish()


def _alert(alert: Alert, run: wandb.Run) -> None:
    run.alert(title=alert.title, text=alert.text, level="WARN")


def _warn_of_unheeded() -> None:
    """A resume needs these two as they are."""
    for name, instead in (("WANDB_DIR", "its files are in the run directory"), ("WANDB_RESUME", "a run is always resumed")):
        if os.environ.get(name):
            _log.warning("%s=%s is ignored: %s", name, os.environ[name], instead)


def _init(log: LogConfig, run_dir: Path, run_name: str, config: dict[str, Any], run_id: str, mode: str) -> wandb.Run:
    """Start the run. Measured on two cores: 0.2 s of CPU time, mostly wandb's own process; git 0.01 s, packages 0.04 s more."""
    given = quiet_settings()  # WANDB_PROJECT and the like, and what `wandb init` has written
    settings = wandb.Settings(
        mode=mode,  # type: ignore[arg-type]  # one of its words
        git_root=os.fspath(_code()),
        x_label=socket.gethostname() if mode == "shared" else None,
        x_disable_stats=log.system_metrics == "none",
        x_disable_meta=cleared(sys.argv) != sys.argv,  # wandb would upload the command line
        **QUIET,
    )
    run = wandb.init(
        project=log.project or given.project or PROJECT,
        entity=log.entity or given.entity,
        name=log.name or given.run_name or run_name,
        group=log.group or given.run_group,
        tags=log.tags or given.run_tags,
        notes=log.notes or given.run_notes,
        job_type=log.job_type or given.run_job_type or JOB_TYPE,
        id=run_id,
        resume="allow",
        dir=os.fspath(run_dir),
        config=cleared(config),
        settings=settings,
    )
    # Our own step axis: wandb drops points whose own step goes back, as it does after a resume from an older checkpoint.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _code() -> Path:
    """Where git is asked for the commit: the checkout of this program, or, if it is installed, where the user is."""
    checkout = Path(trainer.__file__).parents[1]
    return checkout if (checkout / ".git").exists() else Path.cwd()
