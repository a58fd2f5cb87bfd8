"""What a command writes, as a shard."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import BinaryIO, cast

from webdataset.gopen import gopen

from trainer.data.shards.remote.persistent import Failure, pass_over

TRIES = 3  # a command may have its own retries
LAST_WORDS = 4096  # bytes of a command's standard error that are looked at


class Output:
    """What a process writes, from a byte on. Its end counts only if it exits with 0."""

    def __init__(self, run: Callable[[BinaryIO], subprocess.Popen[bytes]], timeout: float, start: int) -> None:
        """`run` starts the process, with a file for its standard error."""
        self._timeout = timeout
        # A file, not a pipe: a command that prints a lot must not wait for a reader.
        self._words = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by close()
        try:
            self._process = run(self._words)
        except OSError as problem:
            self._words.close()
            raise Failure(f"{problem.filename}: {problem.strerror}", again=False) from None
        try:
            pass_over(self, start)
        except Failure:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], self._timeout)[0]:
            raise Failure(f"the command wrote nothing for {self._timeout:g} s")
        content = os.read(output.fileno(), size)
        if content or not size:
            return content
        try:
            code = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"the command closed its output but did not end within {self._timeout:g} s") from None
        if code:
            # A shell's exit codes for a command that does not exist or may not be run: trying again will not help.
            raise Failure(f"the command ended with exit code {code}{self._last_words()}", code not in (126, 127))
        return b""

    def close(self) -> None:
        """End the command and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._words.close()

    def _last_words(self) -> str:
        size = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, size - LAST_WORDS))
        lines = [line.strip() for line in self._words.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line]
        return f": {said[-1][:300]}" if said else ""


def run_command(command: str, words: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a command line of the shell, with its standard error in `words`."""
    return subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=words,
        start_new_session=True,  # so that a whole pipeline can be ended
    )


def ask_webdataset(url: str, words: BinaryIO) -> subprocess.Popen[bytes]:
    """The program with which webdataset reads such a URL (sftp:// with curl, …)."""
    try:
        process: subprocess.Popen[bytes] = gopen(url).proc
    except ImportError as problem:
        raise Failure(str(problem), again=False) from None
    return process
