"""What is between a reader and a server: it passes requests on, and does to some answers what networks and stores do."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Cut:
    """The connection is reset after so many bytes of the content."""

    after: int


@dataclass
class Stall:
    """After so many bytes nothing comes any more; before the first, not even an answer."""

    after: int = 0


@dataclass
class Slow:
    """A piece of so many bytes at a time, with a pause after each."""

    piece: int
    pause: float = 0.01


Fault = int | Cut | Stall | Slow | None
"""An HTTP status, or what happens to the content; None: nothing."""


@dataclass
class BadNetwork:
    """A proxy for the server at a port. Each request for an object takes the next of `faults`; after them all is well."""

    upstream: int
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)  # first and last byte of each request for a part
    url: str = ""

    def __enter__(self) -> "BadNetwork":
        self._done = threading.Event()
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                network.answer(self)

            do_HEAD = do_PUT = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(self, *problem: object) -> None:
        self._done.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(ConnectionError):  # a reader that has had enough
            self._answer(request)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        part = request.headers.get("Range", "").removeprefix("bytes=")
        fault = None
        if request.command == "GET" and part:
            self.asked.append(tuple(map(int, part.split("-"))))  # type: ignore[arg-type]
            fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            self._send(request, fault, {}, ERROR.format(code=CODES[fault]).encode())
            return
        if isinstance(fault, Stall) and not fault.after:
            self._done.wait(30)
            request.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        upstream.request(request.command, request.path, body, dict(request.headers))
        answer = upstream.getresponse()
        content = answer.read()
        self._send(request, answer.status, dict(answer.getheaders()), content, fault)
        upstream.close()

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes, fault: Fault = None
    ) -> None:
        request.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(name, value)
        length = headers.get("Content-Length", "0") if request.command == "HEAD" else str(len(content))
        request.send_header("Content-Length", length)
        request.end_headers()
        if request.command == "HEAD":
            return
        if isinstance(fault, (Cut, Stall)):
            request.wfile.write(content[: fault.after])
            request.wfile.flush()
            if isinstance(fault, Stall):
                self._done.wait(30)
            else:  # a reset, not an orderly end
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            return
        piece = fault.piece if isinstance(fault, Slow) else max(1, len(content))
        for start in range(0, len(content), piece):
            request.wfile.write(content[start : start + piece])
            if isinstance(fault, Slow):
                request.wfile.flush()
                time.sleep(fault.pause)
