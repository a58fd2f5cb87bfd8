"""Writing shards: tar archives whose bytes depend on nothing but the samples in them."""

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

MODE = 0o444  # of the files in a shard: nobody changes them


def packed_sample(key: str, files: Mapping[str, bytes]) -> bytes:
    """A sample as it stands in a shard: its files one after the other, `key.extension`, sorted by extension.

    Their headers name no time and no owner.
    """
    return b"".join(_packed_file(f"{key}.{extension}", files[extension]) for extension in sorted(files))


class ShardWriter:
    """A shard, written under a hidden name and put in place by `close`, whole and on disk. Raises OSError.

    Leaving a `with` block closes it, or removes it if the block failed. size: in bytes, of the samples so far.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.tmp")  # always the same: what a crash leaves, the next one overwrites
        self._file = self._unfinished.open("wb")

    def write(self, sample: bytes) -> None:
        """Add what `packed_sample` gives."""
        self._file.write(sample)
        self.size += len(sample)

    def close(self) -> None:
        """Write the end marker and put the shard in place."""
        end = 2 * tarfile.BLOCKSIZE
        self._file.write(bytes(end + -(self.size + end) % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._path)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)


def _packed_file(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # a time of 0, and owner and group 0 without names
    header.size, header.mode = len(content), MODE
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return b"".join((header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"), content, padding))
