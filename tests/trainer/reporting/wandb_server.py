"""A server of Weights & Biases as far as wandb needs one to record a run online. It keeps everything in memory."""

import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any

PERSON = {"id": "v", "entity": "me", "username": "me", "email": "me@example.com", "flags": "{}", "teams": {"edges": []}}


class FakeServer:
    """A context manager; `url` is its address on this machine."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.streams: set[str] = set()
        self.files: dict[str, list[str]] = {}
        self.exits: list[int] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def calls(self, operation: str) -> list[dict[str, Any]]:
        """The variables of each call of a GraphQL operation."""
        return [variables for name, variables in self.asked if name == operation]

    def rows(self, file: str) -> list[dict[str, Any]]:
        """The lines that a run has streamed to one of its files."""
        return [json.loads(line) for line in self.files.get(file, [])]

    def labels(self) -> set[str]:
        """The writers of system metrics."""
        return {name.partition("/l:")[2] for row in self.rows("wandb-events.jsonl") for name in row if "/l:" in name}

    def wait_for(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"only {[name for name, _ in self.asked]}, {self.labels()}"
            time.sleep(0.1)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "query" not in body:
            self.streams.add(path)
            for name, part in body.get("files", {}).items():
                self.files.setdefault(name, []).extend(part["content"])
            if body.get("complete"):
                self.exits.append(body["exitcode"])
            return {"exitcode": None, "limits": {}}
        operation, variables = body.get("operationName", ""), body.get("variables") or {}
        self.asked.append((operation, variables))
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": variables.get("name"), "displayName": variables.get("displayName"), "config": "{}"}
        data: dict[str, Any] = {
            "Viewer": {"viewer": PERSON},
            "RunResumeStatus": {"model": project | {"bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": run | {"project": project, "historyLineCount": 0}, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
        }
        return {"data": data.get(operation, {})}


def _handler(server: FakeServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            answer = json.dumps(server.answer(self.path, json.loads(data))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
