"""Writing a file atomically."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Put a file in place at once: a crash leaves either the old one or the new one, on disk and not only in memory.

    One process at a time. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name}.tmp")  # always the same: what a crash leaves, the next one overwrites
    try:
        with unfinished.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
