"""Shards that exist: img2dataset's output, or any others, to be packed anew."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from trainer.data.shards.archive import BREAKS, READ_AT_ONCE, ArchiveIndex, is_compressed, open_plain
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.names import printable
from trainer.data.shards.opening import is_remote
from trainer.data.shards.patterns import TRAINING, list_shards, name_some, part_of, tars_in
from trainer.data.shards.samples import Sample, whole_samples
from trainer.errors import UserError, reason
from trainer.shards.source import MOST_BYTES, Found, named
from trainer.shards.unfit import BROKEN_SHARD, TOO_LARGE, UNREADABLE_FILE, Bad, Unfit

OPEN_SHARDS = 64  # at a time, by each process: samples in random order come from all of them


class Packed:
    """Samples of shards, read in any order; of commands, addresses and compressed shards, copies are made for that."""

    merges = False

    def __init__(self, shards: Sequence[str], rule: CaptionRule, work: Path) -> None:
        """work: the folder for copies."""
        self.rule = rule
        self.told = f"samples of {len(shards)} shard{'s' * (len(shards) > 1)}"
        self._shards = shards
        self._work = work

    def find(self) -> Iterator[Found | Bad]:
        """Shard after shard, those of a broken one up to the break."""
        for number, shard in enumerate(self._shards):
            problem = _copy(shard, self._copy_of(number)) if _needs_copy(shard) else ""
            index = ArchiveIndex(self._path_of(number))
            try:
                for key, spans in whole_samples(shard, index):
                    yield Found(key, [number, {extension: [span.offset, span.size] for extension, span in spans.items()}])
            finally:
                index.close()
            if problem or index.problem:
                yield Bad(printable(shard), BROKEN_SHARD, problem or index.problem)

    def read(self, places: Sequence[Any]) -> Sample:
        """places: of one sample, its shard's number, and offset and size of each file."""
        number, spans = places[0]
        shard = self._shards[number]
        size = sum(size for _, size in spans.values())
        if size > MOST_BYTES:
            raise Unfit(TOO_LARGE, f"its files have {size} bytes: the limit is {MOST_BYTES}")
        try:
            stream = _opened(self._path_of(number))
            return Sample(shard, "", {extension: _read(stream, offset, size) for extension, (offset, size) in spans.items()})
        except OSError as problem:
            raise Unfit(UNREADABLE_FILE, f"{printable(shard)}: {reason(problem)}") from None

    def _copy_of(self, number: int) -> Path:
        return self._work / f"{number:06}.tar"

    def _path_of(self, number: int) -> str:
        """Where a shard can be read in any order."""
        copy = self._copy_of(number)
        return str(copy) if copy.exists() else self._shards[number]


@lru_cache(OPEN_SHARDS)
def _opened(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    pieces = []
    while size and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    if size:
        raise OSError("the shard has become shorter")
    return b"".join(pieces)


def _needs_copy(shard: str) -> bool:
    try:
        return is_remote(shard) or is_compressed(shard)
    except OSError:  # which reading it will meet again
        return False


def _copy(shard: str, path: Path) -> str:
    """Write a shard as an uncompressed archive, as far as it can be read; why it ends early, or "". Raises OSError."""
    problem = ""

    def pieces() -> Iterator[bytes]:
        nonlocal problem
        try:
            with open_plain(shard) as stream:
                while piece := stream.read(READ_AT_ONCE):
                    yield piece
        except BREAKS as failure:
            problem = reason(failure)

    with path.open("wb") as copy:
        copy.writelines(pieces())
    return problem


def list_packed(pattern: str) -> list[str]:
    """The shards that `input` names: a path with braces or wildcards, a folder of them, an address or a command.

    Raises UserError when one is missing, and when they are several parts of a data set by name.
    """
    if is_remote(pattern):
        return list_shards(pattern, "input", TRAINING)
    paths = [shard for path in named(pattern) for shard in (tars_in(path) if path.is_dir() else [path])]
    shards = list(dict.fromkeys(map(str, paths)))
    if not shards:
        raise UserError(f"input={pattern}: no shards match")
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise UserError(f"input={pattern}: {len(missing)} of {len(shards)} shards do not exist: {name_some(missing)}")
    parts = {part: shard for shard in shards if (part := part_of([Path(shard).name]))}
    if len(parts) > 1:
        raise UserError(
            f"input={pattern}: shards of several parts of a data set by name ({name_some(sorted(parts.values()))}): "
            "name those of one part, and give each part an output of its own"
        )
    return shards
