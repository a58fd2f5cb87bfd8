"""What every kind of input gives: where its samples are, and later each of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from braceexpand import braceexpand

from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.samples import Sample
from trainer.errors import UserError, reason
from trainer.shards.unfit import MISSING_FILE, TOO_LARGE, UNREADABLE_FILE, Bad, Unfit

MOST_BYTES = 512 << 20  # of one file: an image of the most pixels that are decoded, with 16 bits a channel, is smaller


@dataclass(frozen=True)
class Found:
    """A sample and where it is. place: for `Source.read`; can be written as JSON."""

    key: str
    place: Any


class Source(Protocol):
    """An input of one kind. It is sent to other processes after `find`."""

    told: str
    """What it is, in words."""
    merges: bool
    """Whether everything with the same key is one sample; else they are several, with a key that is not unique."""
    rule: CaptionRule
    """Where the captions of its samples are."""

    def find(self) -> Iterator[Found | Bad]:
        """Everything in it, in its own order. Raises UserError if it cannot be read at all."""
        ...

    def read(self, places: Sequence[Any]) -> Sample:
        """The sample at a place, or at several that have the same key. Raises Unfit."""
        ...


def named(pattern: str) -> list[Path]:
    """The paths that a pattern with braces or wildcards names; without wildcards, also those that do not exist.

    Raises UserError when the braces do not match.
    """
    if Path(pattern).exists():
        return [Path(pattern)]
    try:
        names = [Path(name) for name in braceexpand(pattern)]
    except ValueError:
        raise UserError(f"input={pattern}: the braces in this pattern do not match") from None
    return [path for name in names for path in _matching(name)]


def _matching(path: Path) -> list[Path]:
    if path.exists() or not re.search(r"[*?\[]", str(path)):
        return [path]
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def read_file(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """A file of a sample, or a part of it. Raises Unfit."""
    try:
        with path.open("rb") as file:
            length = size if size is not None else path.stat().st_size
            if length > MOST_BYTES:
                raise Unfit(TOO_LARGE, f"{path.name} has {length} bytes: the limit is {MOST_BYTES}")
            file.seek(offset)
            return file.read(length)
    except FileNotFoundError:
        raise Unfit(MISSING_FILE, f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # a path with a NUL is a ValueError
        raise Unfit(UNREADABLE_FILE, f"{path}: {reason(problem)}") from None
