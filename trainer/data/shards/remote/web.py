"""A file at an http:// or https:// address. The standard library reads it: no package is needed."""

import base64
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus

from trainer.data.shards.names import printable
from trainer.data.shards.remote.persistent import Description, Failure, pass_over

WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # have a meaning in a URL, or are quoted already


class WebFile:
    """A URL whose rest can be asked for, as long as it is the same file."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._login = _without_login(urllib.parse.quote(url, safe=URL_CHARACTERS))
        self._timeout = timeout
        self._version: str | None = None  # ETag or date of what was read so far
        self._described = False

    def describe(self) -> Description:
        """What the server announces. Raises Failure."""
        answer = self.at(0)  # not every address that may be read may be asked about (HEAD)
        answer.close()
        self._described = True
        return Description(answer.size, self._version or "")

    def at(self, start: int) -> "Answer":
        """The file from a byte on. Raises Failure."""
        request = urllib.request.Request(self._url, headers={"User-Agent": "limoe-trainer", "Accept-Encoding": "identity"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self._login:
            request.add_unredirected_header("Authorization", self._login)
        try:
            answer = urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code == 416 and start:
                raise Failure("the file became shorter while it was read", again=False) from None
            # Of a redirection that leads nowhere, urllib's reason has several lines.
            told = " ".join(str(problem.reason).split())
            raise Failure(f"HTTP {problem.code} {told}", problem.code in WORTH_ANOTHER_TRY) from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            again = not isinstance(problem, (ValueError, http.client.InvalidURL))
            raise Failure(_network_reason(problem, self._timeout), again) from None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if (start or self._described) and self._version is not None and version != self._version:
            answer.close()
            raise Failure("the file changed while it was read", again=False)
        self._version = version
        source = Answer(answer, self._timeout)
        try:
            pass_over(source, start - _first_byte(answer, start))
        except Failure:
            source.close()
            raise
        return source


def _without_login(url: str) -> tuple[str, str]:
    """A URL without `user:password@`, and the header that says them ("" if there are none)."""
    found = re.match(r"(\w+://)([^/?#]*)@(.*)", url)
    if found is None:
        return url, ""
    token = base64.b64encode(urllib.parse.unquote(found[2]).encode()).decode()
    return found[1] + found[3], f"Basic {token}"


def _first_byte(answer: http.client.HTTPResponse, asked: int) -> int:
    """Where in the file an answer begins: not every server that is asked for a part sends just that."""
    if answer.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    told = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(told[1]) if told else asked


class Answer:
    """What a server sends. The end counts only once everything it announced has arrived. size: bytes, None if it does not say."""

    def __init__(self, answer: http.client.HTTPResponse, timeout: float) -> None:
        self._answer = answer
        self._timeout = timeout
        length = answer.headers.get("Content-Length", "")
        self.size = int(length) if length.isdigit() else None
        self._left = self.size

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        try:
            content = self._answer.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise Failure(_network_reason(problem, self._timeout)) from None
        if self._left is not None:
            self._left -= len(content)
            if not content and size and self._left > 0:
                raise Failure(f"the connection ended {self._left} bytes too early")
        return content

    def close(self) -> None:
        """End the connection."""
        self._answer.close()


def _network_reason(problem: BaseException, timeout: float) -> str:
    reason = getattr(problem, "reason", problem)
    if isinstance(reason, TimeoutError):
        return f"no data came for {timeout:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return " ".join(printable(str(reason)).split()) or type(reason).__name__
