"""Weights & Biases: a run that survives resumes, and that neither waits for the network nor ends training if it fails."""

import contextlib
import functools
import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from wandb.sdk.lib import wbauth

from trainer.config.schema import LogConfig
from trainer.errors import UserError, reason
from trainer.files import write_whole

_log = logging.getLogger(__name__)
PROJECT = "limoe"
"""W&B's project when neither log.project nor WANDB_PROJECT names one."""
_CONNECT_SECONDS = 3.0
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0  # After that, what is left to upload stays on disk for `wandb sync`.


class WandbRun:
    """A run of Weights & Biases, or nothing if disabled. `mode` is the outcome: "online", "offline" or "disabled"."""

    def __init__(self, run: wandb.Run | None, mode: str) -> None:
        """Use `start`."""
        self._run = run
        self.mode = mode

    @classmethod
    def start(cls, log: LogConfig, run_dir: Path, run_name: str, config: dict[str, Any]) -> "WandbRun":
        """Start or resume the run whose id is in `run_dir/wandb_run_id`; its files go under `run_dir/wandb/`.

        log.wandb=auto is online when logged in and the server can be reached, else offline. Project, entity, name and id: what
        `log` says, else W&B's own variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID), else our defaults.
        Raises UserError for log.wandb=online without a login or a server that accepts it.
        """
        mode = choose_mode(log.wandb)
        if mode == "disabled":
            return cls(None, "disabled")
        _warn_of_unheeded()
        run_id = _run_id(run_dir)
        try:
            return cls(_init(log, run_dir, run_name, config, run_id, mode), mode)
        except Exception as problem:  # wandb raises its own errors, TimeoutError, OSError and more; none may end a run.
            if log.wandb == "online":
                raise UserError(
                    f"log.wandb=online, but wandb could not start ({reason(problem)}): fix this, or use log.wandb=offline"
                ) from problem
            instead = "offline" if mode == "online" else "without it"
            _log.warning("wandb could not start %s (%s): the run continues %s", mode, reason(problem), instead)
            wandb.teardown()  # The remains of the failed run still have its id.
            if mode == "offline":
                return cls(None, "disabled")
        return cls.start(replace(log, wandb="offline"), run_dir, run_name, config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step. A step may come again after a resume; no point is dropped because of that."""
        if self._run is None:
            return
        try:
            self._run.log({"step": step, **metrics})
        except Exception as problem:  # See `start`.
            _log.warning("wandb failed at step %d (%s): training continues without it", step, reason(problem))
            self._run = None

    def finish(self, exit_code: int = 0, stopped: bool = False) -> None:
        """Upload what is left, for a minute at most, and mark the run as finished (0), preempted (`stopped`) or failed."""
        if self._run is None:
            return
        try:
            if stopped:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)
        except Exception as problem:  # See `start`.
            _log.warning("wandb could not finish (%s): its files are complete on disk", reason(problem))
        self._run = None


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


def choose_mode(wanted: str) -> str:
    """What log.wandb means here: "online", "offline" or "disabled". Raises UserError as `WandbRun.start` does."""
    if wanted in ("offline", "disabled"):
        return wanted
    settings = _quiet_settings()
    if wanted == "auto" and settings.mode in ("offline", "dryrun", "disabled"):  # WANDB_MODE, or `wandb offline` once typed.
        return "disabled" if settings.mode == "disabled" else "offline"
    try:
        logged_in = wbauth.authenticate_session(host=settings.base_url, source="limoe", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as problem:
        if wanted == "online":
            raise UserError(f"log.wandb=online, but {reason(problem)}: run `wandb login`, or use log.wandb=offline") from problem
        _log.warning("wandb stays offline: %s", reason(problem))
        return "offline"
    if wanted == "online":
        if logged_in is None:
            raise UserError("log.wandb=online, but you are not logged in here: run `wandb login`, or use log.wandb=offline")
        return "online"
    return "online" if logged_in and _reachable(settings.base_url) else "offline"


def check_login(wanted: str) -> str:
    """`choose_mode` before a run: it leaves nothing on disk, and for log.wandb=online the server must answer too."""
    with tempfile.TemporaryDirectory() as cache, _environment("WANDB_CACHE_DIR", cache):
        try:
            mode = choose_mode(wanted)
            if wanted == "online" and not _reachable(url := _quiet_settings().base_url):
                raise UserError(f"log.wandb=online, but {url} does not answer: use log.wandb=auto or offline")
            return mode
        finally:
            wandb.teardown()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _quiet_settings() -> wandb.Settings:
    """wandb's settings from its files and environment, with its messages switched off; its own log is `wandb/debug.log`."""
    return wandb.setup(settings=wandb.Settings(silent=True, quiet=True, console="off")).settings


@functools.cache  # a sweep asks for each of its runs
def _reachable(url: str) -> bool:
    """Whether the server, or the proxy in front of it, accepts a connection within three seconds."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 443)
    connected = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
                connected.set()
        except OSError:
            pass

    # In a thread, because a name server that does not answer blocks for much longer, whatever the socket's time-out.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return connected.is_set()


def _run_id(run_dir: Path) -> str:
    """The id of the directory's run: what WANDB_RUN_ID says, else the one it keeps, else a new one; it is kept from then on.

    `wandb_run_dir` records whose id it is, so that a copy of a run directory gets its own run: it is a copy if the directory
    named there is another one and has the same id. A moved directory leaves nothing there, and continues its run.
    """
    path, home = run_dir / "wandb_run_id", run_dir / "wandb_run_dir"
    here = str(run_dir.resolve())
    try:
        kept, of = _word_in(path), _word_in(home)
        run_id = _quiet_settings().run_id or kept
        if run_id and run_id == kept and of and _is_copy(run_dir, Path(of), kept):
            run_id = ""
        run_id = run_id or secrets.token_hex(4)  # Not from `random`: runs of one seed would share an id.
        if kept and run_id != kept:
            because = f"{run_dir} is a copy of {of}" if not _quiet_settings().run_id else "WANDB_RUN_ID says so"
            _log.warning("W&B run %s instead of %s, because %s", run_id, kept, because)
        if run_id != kept:
            write_whole(path, f"{run_id}\n".encode())
        if of != here:
            write_whole(home, f"{here}\n".encode())
    except OSError as problem:
        raise UserError(f"cannot write {path} ({reason(problem)}): make room or choose another run.dir") from problem
    return run_id


def _word_in(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _is_copy(run_dir: Path, original: Path, run_id: str) -> bool:
    """Whether `original` is another directory that has the same run."""
    try:
        return _word_in(original / "wandb_run_id") == run_id and not run_dir.samefile(original)
    except OSError:  # not readable, so no run continues there either
        return False


def _warn_of_unheeded() -> None:
    """A resume needs these two as they are."""
    for name, instead in (("WANDB_DIR", "its files are in the run directory"), ("WANDB_RESUME", "a run is always resumed")):
        if os.environ.get(name):
            _log.warning("%s=%s is ignored: %s", name, os.environ[name], instead)


def _init(log: LogConfig, run_dir: Path, run_name: str, config: dict[str, Any], run_id: str, mode: str) -> wandb.Run:
    given = _quiet_settings()  # WANDB_PROJECT and the like, and what `wandb init` has written
    settings = wandb.Settings(
        mode="offline" if mode == "offline" else "online",
        silent=True,
        quiet=True,
        console="off",
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        # Nothing about this machine and its code: it slows down the start, and config.yaml and the journal record what matters.
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=log.project or given.project or PROJECT,
        entity=log.entity or given.entity,
        name=log.name or given.run_name or run_name,
        id=run_id,
        resume="allow",
        dir=os.fspath(run_dir),
        config=config,
        settings=settings,
    )
    # Our own step axis: wandb drops points whose own step goes back, as it does after a resume from an older checkpoint.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
