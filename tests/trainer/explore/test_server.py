"""The page and its answers over HTTP, and all that gets none."""

import io
import json
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from PIL import Image

from trainer.explore.answers import Explorer
from trainer.explore.server import MOST_BYTES, PAGE, ExplorerServer


@pytest.fixture(scope="module")
def server(explorer: Explorer) -> Iterator[ExplorerServer]:
    with ExplorerServer("127.0.0.1", 0) as made:
        serving = threading.Thread(target=made.serve, args=(explorer,))
        serving.start()
        yield made
        made.shutdown()
        serving.join()


def ask(
    server: ExplorerServer, path: str, body: bytes | None = None, method: str | None = None, **headers: str
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, named)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_the_page_has_nothing_from_elsewhere_and_no_script_but_its_own(server: ExplorerServer):
    for path, (_, kind) in PAGE.items():
        response, content = ask(server, path)
        assert (response.status, response.headers["Content-Type"]) == (200, kind)
        assert not re.findall(rb"https?://", content), "no font, library or picture of another server"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    _, html = ask(server, "/")
    assert b" style=" not in html and b" onclick" not in html and b"<style" not in html, "the policy would refuse them"
    assert re.findall(rb'<script src="([^"]*)"', html) == [b"page.js"]
    _, script = ask(server, "/page.js")
    assert b"innerHTML" not in script and b"insertAdjacentHTML" not in script and b"document.write" not in script


def test_words_a_picture_and_a_file_are_answered(server: ExplorerServer, explorer: Explorer):
    words = "picture number 3 of a small set"
    assert json.loads(ask(server, "/api/words", words.encode())[1]) == explorer.words(words)
    assert json.loads(ask(server, "/api/picture?number=4")[1]) == explorer.picture(4)
    assert json.loads(ask(server, "/api/picture?number=4&slots=training")[1]) == explorer.picture(4, "training")
    response, png = ask(server, "/picture.png?number=4")
    assert response.headers["Content-Type"] == "image/png" and png == explorer.png(4)
    assert json.loads(ask(server, "/api/image", png)[1])["pictures"][0]["number"] == 4
    assert json.loads(ask(server, "/api/expert?layer=1&expert=2")[1]) == explorer.expert(1, 2)
    about = json.loads(ask(server, "/api/about")[1])
    assert about["layers"] == {"1": 4} and len(about["colours"]) == 4 and about["gallery"]["images"] == 10


def test_several_browsers_at_once_get_the_answers_that_they_asked_for(server: ExplorerServer, explorer: Explorer):
    found: dict[int, dict] = {}

    def look(number: int) -> None:
        found[number] = json.loads(ask(server, f"/api/picture?number={number}")[1])

    threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: explorer.picture(number) for number in range(8)}


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost:9000", "LOCALHOST", "[::1]:1234", "192.168.1.5:8642"])
def test_names_of_this_machine_are_answered(server: ExplorerServer, host: str):
    assert ask(server, "/api/about", Host=host)[0].status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "", "[::1", "a b"])
def test_another_name_that_leads_here_is_refused(server: ExplorerServer, host: str):
    response, content = ask(server, "/", Host=host)
    assert response.status == 403 and b"problem" in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_what_another_site_asks_is_refused(server: ExplorerServer, headers: dict[str, str]):
    assert ask(server, "/api/words", b"a", **headers)[0].status == 403


def test_a_link_from_another_site_opens_the_page(server: ExplorerServer):
    assert ask(server, "/", Sec_Fetch_Site="cross-site")[0].status == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.py", "/answers.py", "//etc/passwd", "/api", "/picture.png/x"],
)
def test_no_path_reaches_a_file(server: ExplorerServer, path: str):
    response, content = ask(server, path)
    assert response.status == 404 and json.loads(content) == {"problem": "there is nothing here"}


def bomb() -> bytes:
    """A PNG whose header promises 10^10 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT\0\0\0\0"


def grey(side: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/image", b"{}", "image cannot be decoded: it is JSON"),
        ("/api/image", b"", "an empty file"),
        ("/api/image", bomb(), "image too large"),
        ("/api/image", grey(9000), "image too large"),
        ("/api/words", b"  ", "type some words"),
        ("/api/words?slots=none", b"a", "slots: choose evaluation or training"),
        ("/api/picture?number=99", None, "there is no picture 99"),
        ("/api/picture?number=-1", None, "number must be a number"),
        ("/api/picture", None, "number must be a number"),
        ("/api/expert?layer=1&expert=9", None, "there is no expert 9"),
        ("/picture.png?number=1e3", None, "number must be a number"),
    ],
)
def test_a_mistake_is_told_in_a_line(server: ExplorerServer, path: str, body: bytes | None, told: str):
    response, content = ask(server, path, body)
    assert response.status == 400 and told in json.loads(content)["problem"]


def test_words_that_are_not_utf_8_are_read_as_they_can_be(server: ExplorerServer):
    assert json.loads(ask(server, "/api/words", b"picture \xff number")[1])["text"] == "picture number"


def raw(server: ExplorerServer, request: bytes) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: ExplorerServer):
    head = f"POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MOST_BYTES + 1}\r\n\r\n"
    assert b" 413 " in raw(server, head.encode())
    assert b" 413 " in raw(server, b"POST /api/words HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
    assert b" 411 " in raw(server, b"POST /api/image HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 411 " in raw(server, b"POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n")


def test_an_error_of_ours_is_told_and_logged_and_the_next_is_answered(
    server: ExplorerServer, explorer: Explorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with monkeypatch.context() as broken:
        broken.setattr(explorer, "_traced", lambda *_: 1 / 0)
        response, content = ask(server, "/api/picture?number=0")
    assert response.status == 500 and "division by zero" in json.loads(content)["problem"]
    assert "ZeroDivisionError" in caplog.text
    assert ask(server, "/api/picture?number=0")[0].status == 200


def test_other_methods_do_nothing(server: ExplorerServer):
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/api/about", method=method)[0].status == 501


def test_the_address_is_told_as_a_browser_takes_it():
    with ExplorerServer("localhost", 0) as by_name:
        assert re.fullmatch(r"http://localhost:\d+/", by_name.url)
    if socket.has_ipv6:
        try:
            with ExplorerServer("::1", 0) as six:
                assert re.fullmatch(r"http://\[::1\]:\d+/", six.url) and six.answers_to("[::1]:80")
        except OSError:
            pytest.skip("this machine has no IPv6")
