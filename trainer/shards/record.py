"""What is known of each finished shard: enough to go on after it, and for the lists that are left at the end."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainer.shards.unfit import Bad


@dataclass
class Record:
    """A finished shard, or what was left out after the last one (shard: None).

    several: samples with more than one caption; bytes: of the file; next: the number of the first item of the plan that is
    accounted for neither here nor before.
    """

    part: str
    shard: str | None = None
    pairs: int = 0
    captions: int = 0
    several: int = 0
    resized: int = 0
    bytes: int = 0
    next: int = 0
    bad: list[Bad] = field(default_factory=list)


class Records:
    """The records of a folder's shards, in a file with a line for each."""

    def __init__(self, path: Path) -> None:
        self.all: list[Record] = []
        self._path = path
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            os.truncate(path, len(whole))  # a line that was being written
            self.all = [_parsed(line) for line in whole.splitlines()]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.all)

    def add(self, record: Record) -> None:
        """Write a record down, on disk and not only in memory. Raises OSError."""
        with self._path.open("ab") as file:
            file.write(json.dumps(asdict(record)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.all.append(record)

    def of(self, part: str) -> list[Record]:
        """Those of a part, in order."""
        return [record for record in self.all if record.part == part]

    @property
    def pairs(self) -> int:
        """Of all shards."""
        return sum(record.pairs for record in self.all)

    @property
    def bad(self) -> list[Bad]:
        """All samples that were left out."""
        return [bad for record in self.all for bad in record.bad]


def kinds_of(bad: Iterable[Bad]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(entry.kind for entry in bad)


def _parsed(line: bytes) -> Record:
    values = json.loads(line)
    return Record(**values | {"bad": [Bad(*entry) for entry in values["bad"]]})
