"""A Hugging Face Hub of this process, for the real client: what it asks of the server to download and to upload."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

MISSING = "huggingface_hub is not installed (requirements-hf.txt)"


@dataclass
class Repository:
    """revisions: by name, the content of each file. refusal: what the server says of it instead (RepoNotFound, GatedRepo)."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusal: str | None = None
    private: bool = False

    def sha(self, revision: str) -> str:
        """The name of a revision's commit, which the revision is known by too."""
        files = self.revisions[revision]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()

    def named(self, revision: str) -> str | None:
        """The revision that a name or a commit means."""
        return next((name for name in self.revisions if revision in (name, self.sha(name))), None)


@dataclass
class FakeHub:
    """A server's repositories by name. asked: all requests, such as `GET /api/whoami-v2`; writer: the token that may write."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    writer: str = "hf_writer"

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> Repository:
        """Give a repository another revision."""
        repository = self.repositories.setdefault(name, Repository())
        repository.revisions[revision] = files
        return repository


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeHub]:
    """A Hub that the client takes for the real one, with a cache of its own. Skips where the client is missing."""
    pytest.importorskip("huggingface_hub", reason=MISSING)
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    # What the client reads of the environment when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":  # the head of a card
            self._answer(200, {"warnings": [], "errors": []})
        elif path in ("/api/repos/create", "/api/whoami-v2") or re.search("/(preupload|commit)/", path):
            self._write(path, body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self._describe(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._answer(404, {"error": "no such page"})

    def _repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the name of its revision; None after it was refused."""
        repository = self.hub.repositories.get(name)
        if repository is None or repository.refusal:
            refusal = "RepoNotFound" if repository is None else repository.refusal
            self._answer(403 if refusal == "GatedRepo" else 401, {"error": "no"}, {"X-Error-Code": str(refusal)})
            return None
        found = repository.named(revision)
        if found is None:
            self._answer(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, found

    def _describe(self, name: str, what: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        repository, revision = found
        if what == "revision":
            self._answer(200, {"id": name, "sha": repository.sha(revision), "siblings": []})
            return
        files = repository.revisions[revision].items()
        self._answer(200, [{"type": "file", "path": path, "size": len(data), "oid": _digest(data)} for path, data in files])

    def _file(self, name: str, revision: str, path: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        repository, revision = found
        data = repository.revisions[revision].get(path)
        if data is None:
            self._answer(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
            return
        self._answer(200, data, {"X-Repo-Commit": repository.sha(revision), "ETag": f'"{_digest(data)}"'})

    def _write(self, path: str, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.writer}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/whoami-v2":
            self._answer(200, {"name": "owner", "type": "user"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.hub.repositories
            repository = self.hub.repositories.setdefault(name, Repository({"main": {}}))
            repository.private = repository.private if known else asked.get("visibility") == "private"
            self._answer(409 if known else 200, {"url": f"{self.hub.address}/{name}"})
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        else:
            self._commit(path, body)

    def _commit(self, path: str, body: bytes) -> None:
        name = "/".join(path.split("/")[3:5])
        files = self.hub.repositories[name].revisions["main"]
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        address = f"{self.hub.address}/{name}/commit/{self.hub.repositories[name].sha('main')}"
        self._answer(200, {"commitUrl": address, "commitOid": address.rpartition("/")[2], "success": True})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
