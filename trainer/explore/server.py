"""The page and its answers over HTTP: nothing but what is listed here, to browsers that have the page open."""

import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trainer.errors import UserError, reason
from trainer.explore.answers import SLOTS, Explorer

MOST_BYTES = 32 * 2**20
"""Of a request: an image file as cameras make them."""
MOST_BYTES_OF_WORDS = 2**20
SECONDS = 60.0
"""A connection that says nothing for longer is closed."""
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",  # the next run that is served here has other pictures by the same numbers
    # The page has no script and no style but its own, and nothing can frame it or be told about it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets no answer, with the status that says why."""

    def __init__(self, status: HTTPStatus, told: str) -> None:
        super().__init__(told)
        self.status = status


class ExplorerServer(ThreadingHTTPServer):
    """Holds an address from the start, and answers once it is given an explorer. port: 0 for any free one."""

    daemon_threads = True
    explorer: Explorer

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError for an address that cannot be used."""
        self.host = host
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.page = {path: files(__package__).joinpath(name).read_bytes() for path, (name, _) in PAGE.items()}
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def serve(self, explorer: Explorer) -> None:
        """Answer until `shutdown` is called from another thread, or KeyboardInterrupt."""
        self.explorer = explorer
        self.serve_forever(poll_interval=0.1)

    @property
    def url(self) -> str:
        """What a browser opens."""
        everywhere = is_address(self.host) and ipaddress.ip_address(self.host).is_unspecified
        name = socket.gethostname() if everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/"

    @cached_property
    def _names(self) -> set[str]:
        return {"localhost", self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this machine: by an address, or by a name of its own.

        A page from elsewhere whose name was made to lead here (DNS rebinding) comes with that name.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # half an address of IPv6
            return False
        return is_address(name) or name in self._names


def is_address(name: str) -> bool:
    """Whether a host is given by its number."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: ExplorerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "LIMoE", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """The page, its pictures, and what can be asked in an address."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Words, or an image."""
        self._answer(self._post)

    def _get(self) -> None:
        asked = urlsplit(self.path)
        values = {name: of_name[-1] for name, of_name in parse_qs(asked.query).items()}
        explorer = self.server.explorer
        if asked.path in PAGE:
            self._send(self.server.page[asked.path], PAGE[asked.path][1])
        elif asked.path == "/api/about":
            self._send_json(explorer.about() | {"most_bytes": MOST_BYTES})
        elif asked.path == "/api/picture":
            self._send_json(explorer.picture(_number(values, "number"), values.get("slots", SLOTS[0])))
        elif asked.path == "/api/expert":
            self._send_json(explorer.expert(_number(values, "layer"), _number(values, "expert")))
        elif asked.path == "/picture.png":
            self._send(explorer.png(_number(values, "number")), "image/png")
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self) -> None:
        asked = urlsplit(self.path)
        slots = parse_qs(asked.query).get("slots", [SLOTS[0]])[-1]
        if asked.path == "/api/words":
            self._send_json(self.server.explorer.words(self._body(MOST_BYTES_OF_WORDS).decode("utf-8", "replace"), slots))
        elif asked.path == "/api/image":
            self._send_json(self.server.explorer.image(self._body(MOST_BYTES), slots))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            self._check_from_here()
            work()
        except Refused as problem:
            self._send_problem(problem.status, str(problem))
        except UserError as problem:
            self._send_problem(HTTPStatus.BAD_REQUEST, str(problem))
        except (ConnectionError, TimeoutError):  # the browser has left
            self.close_connection = True
        except Exception as problem:
            _log.exception("%s %s failed", self.command, self.path)
            self._send_problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"failed: {reason(problem)}; the terminal says more")

    def _check_from_here(self) -> None:
        """Raise Refused for a request that another site made the browser send."""
        if not self.server.answers_to(self.headers.get("Host", "")):
            raise Refused(HTTPStatus.FORBIDDEN, f"open {self.server.url}: this machine has no such name")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers["Host"]:
            raise Refused(HTTPStatus.FORBIDDEN, "asked by another site")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and urlsplit(self.path).path != "/":
            raise Refused(HTTPStatus.FORBIDDEN, "asked by another site")

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the length is missing")
        if int(length) > most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"too large: at most {most // 2**20} MiB")
        return self.rfile.read(int(length))

    def _send_json(self, values: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(values).encode(), "application/json", status=status)

    def _send_problem(self, status: HTTPStatus, told: str) -> None:
        self.close_connection = True  # there may be a body that nobody has read
        self._send_json({"problem": told}, status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing: what fails is logged where it fails."""


def _number(values: dict[str, str], name: str) -> int:
    value = values.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UserError(f"{name} must be a number")
    return int(value)
