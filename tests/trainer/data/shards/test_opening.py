"""Shards that are read from elsewhere: servers that fail, stall and cut, and commands that do not end well."""

import io
import logging
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import write_shards
from trainer.data.shards.opening import Remote, open_shard
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.remote import persistent
from trainer.data.shards.remote.cache import ShardCache
from trainer.data.shards.remote.persistent import ReadFailed
from trainer.data.shards.samples import read_samples
from trainer.data.workers import _collect_warnings
from trainer.errors import UserError

QUICK = Remote(timeout=1.0, tries=4)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "*")


@dataclass
class Server:
    """Serves one file. Each request takes the next of `plan`: an HTTP error, "silence", "stall" (after some bytes), or after how
    many bytes it cuts; when all are taken, it sends the whole."""

    content: bytes
    plan: list[int | str] = field(default_factory=list)
    ranges: bool = True
    asked: list[str] = field(default_factory=list)  # the Range headers
    url: str = ""
    version: str = '"1"'
    part: int | None = None  # where the parts begin that it sends, wherever they should
    paths: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers.get("Range", ""))
        step = self.plan.pop(0) if self.plan else len(self.content)
        self.paths.append(request.path)
        self.logins.append(request.headers.get("Authorization"))
        if step == 302:
            request.send_response(302)
            request.send_header("Location", request.path)
            request.end_headers()
            return
        if isinstance(step, int) and 400 <= step < 600:
            request.send_error(step)
            return
        start = int(self.asked[-1].removeprefix("bytes=").rstrip("-") or 0) if self.ranges else 0
        request.send_response(206 if start else 200)
        if start and self.part is not None:
            start = self.part
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("ETag", self.version)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        if isinstance(step, str):
            if step == "stall":
                request.wfile.write(self.content[start : start + 1000])
            request.wfile.flush()
            time.sleep(3)
        else:
            request.wfile.write(self.content[start : start + step])
        request.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (shard,) = write_shards(tmp_path, 1, 6)
    served = Server(Path(shard).read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{http.server_port}/a.tar"
    yield served
    http.shutdown()
    http.server_close()


def read(server: Server) -> bytes:
    with open_shard(server.url, QUICK) as stream:
        return stream.read()


@pytest.mark.parametrize(
    "plan",
    [[], [503, 429], [700], [700, 700, 1500, 503, 10], ["stall"], ["stall", 503, 2000]],
    ids=["whole", "errors that pass", "cut", "cut again and again", "stalled", "all of it"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_what_passes_is_passed_over(server: Server, plan: list[int | str], ranges: bool) -> None:
    server.plan, server.ranges = list(plan), ranges
    assert read(server) == server.content


def test_the_rest_is_asked_for_and_not_the_whole(server: Server) -> None:
    server.plan = [700, 503, 300]
    read(server)
    assert server.asked == ["", "bytes=700-", "bytes=700-", "bytes=1000-"]


def test_a_wait_is_told_with_what_it_waits_for_and_how_long(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.plan = [503, 503, 503]
    with caplog.at_level(logging.WARNING):
        read(server)
    waits = [record.getMessage() for record in caplog.records if getattr(record, "at_once", False)]
    assert len(waits) == 3
    assert waits[0] == f"{server.url}: HTTP 503 Service Unavailable; waiting 0.001 s for try 2 of 4"
    assert "waiting 0.004 s for try 4 of 4" in waits[2], "the waits double"


@pytest.mark.parametrize(
    ("plan", "reason", "requests"),
    [
        ([404], "HTTP 404", 1),
        ([403], "HTTP 403", 1),
        ([503] * 9, r"HTTP 503 Service Unavailable \(tried 4 times\)", 4),
        ([700, 404], r"HTTP 404 Not Found after 700 bytes", 2),
        ([700, *[503] * 9], r"HTTP 503 Service Unavailable after 700 bytes \(tried 4 times\)", 4),
    ],
)
def test_what_does_not_pass_ends_the_shard_with_the_reason(
    server: Server, plan: list[int | str], reason: str, requests: int
) -> None:
    server.plan = list(plan)
    with pytest.raises(ReadFailed, match=reason):
        read(server)
    assert len(server.asked) == requests


def test_a_server_that_stalls_for_ever_ends_in_time(server: Server) -> None:
    server.plan = ["silence"] * 9
    with (
        pytest.raises(ReadFailed, match=r"no data came for 0.2 s \(tried 2 times\)"),
        open_shard(server.url, Remote(timeout=0.2, tries=2)) as stream,
    ):
        stream.read()


def test_a_file_that_is_replaced_meanwhile_is_not_mixed(server: Server) -> None:
    server.plan = [700]
    with open_shard(server.url, QUICK) as stream:
        assert stream.read(1) == server.content[:1]
        server.version = '"2"'
        with pytest.raises(ReadFailed, match="the file changed while it was read"):
            stream.read()


def test_nobody_at_the_address(caplog: pytest.LogCaptureFixture) -> None:
    (sample,) = read_samples("http://127.0.0.1:9/a.tar", QUICK)
    assert sample.broken == "Connection refused (tried 4 times)"


def test_samples_come_from_a_server_as_from_a_file(server: Server) -> None:
    server.plan = [2000, 503]
    assert [sample.key for sample in read_samples(server.url, QUICK)] == [f"{number:06}" for number in range(6)]


def test_a_command_says_its_last_line(tmp_path: Path) -> None:
    (sample,) = read_samples("pipe:echo first >&2; echo no such bucket >&2; exit 3", QUICK)
    assert sample.broken == "the command ended with exit code 3: no such bucket (tried 3 times)"


def test_a_command_that_is_not_there_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (sample,) = read_samples("pipe:no-such-program /x", QUICK)
    assert "exit code 127" in sample.broken
    assert "not found" in sample.broken
    assert "waiting" not in caplog.text


def test_a_command_that_fails_once_goes_on_behind_what_was_read(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 6)
    flag = tmp_path / "failed"
    command = f"pipe:test -e {flag} && exec cat {shard}; touch {flag}; head -c 3000 {shard}; exit 1"
    with open_shard(command, QUICK) as stream:
        assert stream.read() == Path(shard).read_bytes()


def test_a_command_that_writes_nothing_is_ended_in_time(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    started = time.monotonic()
    (sample,) = read_samples(f"pipe:(sleep 60; touch {alive}) | cat", Remote(timeout=0.2, tries=2))
    assert sample.broken == "the command wrote nothing for 0.2 s (tried 2 times)"
    assert time.monotonic() - started < 30


def test_a_shard_that_is_left_in_the_middle_leaves_no_command(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 6)
    samples = read_samples(f"pipe:cat {shard}; exec sleep 60", QUICK)
    next(samples)
    started = time.monotonic()
    samples.close()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("shard", ["az://x/a.tar", "abfs://x/a.tar"])
def test_a_url_that_nothing_can_read_says_what_can(shard: str) -> None:
    scheme = shard.partition(":")[0]
    with pytest.raises(UserError, match=rf"data.train: {scheme}:// cannot be read directly: give a command") as raised:
        list_shards(shard, "data.train")
    assert f"'pipe:{'az storage blob download' if scheme == 'az' else 'COMMAND'} " in str(raised.value)


def test_a_web_page_in_place_of_a_shard(server: Server) -> None:
    server.content = b"<!DOCTYPE html><html>" + b"log in first " * 100
    (sample,) = read_samples(server.url, QUICK)
    assert sample.broken == "it begins with b'<!DOCTYPE html><', which is not a tar header"


def test_links_to_other_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        info = tarfile.TarInfo("0.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
        for name, kind in (("1.jpg", tarfile.LNKTYPE), ("2.jpg", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "0.jpg"
            archive.addfile(link)
    with caplog.at_level(logging.WARNING):
        assert [sample.key for sample in read_samples(str(shard))] == ["0"]
    assert "hard links are not followed: 1.jpg points to 0.jpg: write the archive with tar --hard-dereference" in caplog.text
    assert "symbolic links are not followed: 2.jpg points to 0.jpg: write the archive with tar --dereference" in caplog.text


def test_a_data_worker_tells_a_wait_at_once_and_not_with_its_next_batch(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    kept = _collect_warnings()
    server.plan = [503]
    read(server)
    assert kept == []
    assert f"WARNING (data worker): {server.url}: HTTP 503" in capsys.readouterr().err


def test_a_part_from_another_place_than_was_asked_for_is_not_mixed_in(server: Server) -> None:
    server.plan, server.part = [700, 900], 0
    assert read(server) == server.content, "206 with all of it"
    server.plan, server.part = [700], 5000
    with pytest.raises(ReadFailed, match="the server left out 4300 bytes after 700 bytes"):
        read(server)


def test_a_failure_is_one_line(server: Server) -> None:
    server.plan = [302] * 99
    with pytest.raises(ReadFailed, match=r"HTTP 302 .*infinite loop") as raised:
        read(server)
    assert "\n" not in str(raised.value)


def test_a_login_in_a_url_is_sent_and_not_shown(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.plan = [503, 403]
    (shard,) = list_shards(server.url.replace("://", "://me:hush%21@"), "data.train")
    with caplog.at_level(logging.WARNING):
        (sample,) = read_samples(shard, QUICK)
    assert sample.id == f"{server.url}/(break)"
    assert sample.broken == "HTTP 403 Forbidden"
    assert "hush" not in caplog.text
    assert server.logins == ["Basic bWU6aHVzaCE="] * 2  # me:hush! in base64


def test_the_rest_of_a_file_in_the_cache_is_asked_for(server: Server, tmp_path: Path) -> None:
    remote = replace(QUICK, cache=ShardCache(str(tmp_path / "kept"), 1 << 20))
    server.plan = [50, 700, 503]  # the first only looks at the size
    for _ in range(2):
        with open_shard(server.url, remote) as stream:
            assert stream.read() == server.content
    assert server.asked == ["", "", "bytes=700-", "bytes=700-", ""]


def test_the_shards_of_a_servers_folder_that_counts_them(server: Server) -> None:
    folder = server.url.removesuffix("a.tar")
    server.plan = [404, 404, 404, 404]  # val/, valid/, validation/ and dev/ have no nshards.txt
    server.content = b"2\n"
    assert list_shards(folder, "data.val") == [f"{folder}test/0.tar", f"{folder}test/1.tar"]
    assert server.paths[-1] == "/test/nshards.txt"


def test_spaces_and_letters_in_a_url_are_quoted(server: Server) -> None:
    with open_shard(server.url.replace("a.tar", "a b/é%20.tar?x=1&y=[2]"), QUICK) as stream:
        assert stream.read() == server.content
    assert server.paths == ["/a%20b/%C3%A9%20.tar?x=1&y=[2]"]
