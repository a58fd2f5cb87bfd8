"""Whether Weights & Biases can be used here: online, offline or not at all."""

import contextlib
import functools
import logging
import os
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import wandb
from wandb.sdk.lib import wbauth

from trainer.errors import UserError, reason

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 3.0


def quiet_settings() -> wandb.Settings:
    """wandb's settings from its files and environment, with its messages switched off; its own log is `wandb/debug.log`."""
    return wandb.setup(settings=wandb.Settings(silent=True, quiet=True, console="off")).settings


def choose_mode(wanted: str) -> str:
    """What log.wandb means here: "online", "offline" or "disabled". Raises UserError for `online` without a login."""
    if wanted in ("offline", "disabled"):
        return wanted
    settings = quiet_settings()
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
            if wanted == "online" and not _reachable(url := quiet_settings().base_url):
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
