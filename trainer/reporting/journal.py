"""`metrics.jsonl` and its like: what a run measured, one JSON object per line, readable without any account or library."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UserError, reason
from trainer.files import write_whole

_log = logging.getLogger(__name__)


class Journal:
    """A file of a run with a line for each record, open for appending."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open `path`, whose directory exists, for appending.

        resume_step: the step of the checkpoint a run resumes from; lines about later steps, which will be repeated, and a line
        that was cut off are dropped. None: a fresh start.
        Raises UserError when the file cannot be written.
        """
        self._path = path
        self._may_warn = True
        try:
            if resume_step is not None and path.exists():
                write_whole(path, _lines_until(path, resume_step))
            # Unbuffered: each line is one write, and a failed one leaves nothing behind that would come out later.
            self._file = path.open("ab", buffering=0)
        except OSError as problem:
            raise UserError(
                f"cannot write the metrics to {path} ({reason(problem)}): make room or choose another run.dir"
            ) from problem

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append what was measured in a step: numbers, or lists and mappings of them; those that are not finite become null.

        A full disk is reported once, then tolerated.
        """
        line = {"step": int(step)} | {name: _finite(value) for name, value in metrics.items() if name != "step"}
        data = json.dumps(line).encode() + b"\n"
        try:
            self._append(data)
        except OSError as problem:
            if self._may_warn:
                _log.warning("cannot write the metrics to %s (%s): training continues without them", self._path, reason(problem))
            self._may_warn = False

    def close(self) -> None:
        """Close the file; no `write` may follow."""
        self._file.close()

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):  # A nearly full disk takes a part, and refuses the rest at the next call.
                written += self._file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # No partial line before the next one.
            raise


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    number = float(value)
    return number if math.isfinite(number) else None


def _lines_until(path: Path, last_step: int) -> Iterator[bytes]:
    with path.open("rb") as lines:
        for line in lines:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):  # A crash cut the line off or left zeros in it.
                continue
            if line.endswith(b"\n") and isinstance(step, int) and step <= last_step:
                yield line
