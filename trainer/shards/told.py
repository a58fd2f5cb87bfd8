"""What is said at the end: what there is, what was left out, and how to train with it."""

import shlex
from collections import Counter
from pathlib import Path

from trainer.shards.manifest import BAD, Finished
from trainer.shards.plan import TRAIN, VAL

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SPECIAL = set(",:=[]()' \t$\\")
"""What has a meaning in the grammar of overrides; braces are understood."""


def summary(folder: Path, finished: Finished, short_side: int | None) -> list[str]:
    """Lines."""
    lines = []
    for name, part in sorted(finished.parts.items()):
        count = len(part.shards)
        captions = f" with {part.captions:,} captions" if part.captions != part.pairs else ""
        lines.append(f"{name}: {part.pairs:,} pairs{captions} in {count:,} shard{'s' * (count != 1)}, {size_told(part.bytes)}")
    if resized := sum(part.resized for part in finished.parts.values()):
        lines.append(f"{resized:,} images were made smaller, to a short side of {short_side} pixels; the others are as they were")
    if finished.bad:
        lines.append(f"{finished.bad.total():,} left out, listed in {folder / BAD}: {kinds_told(finished.bad)}")
    return lines


def kinds_told(bad: Counter[str]) -> str:
    """`12 image cannot be decoded, 3 no caption`"""
    return ", ".join(f"{count:,} {kind}" for kind, count in bad.most_common())


def size_told(size: float) -> str:
    """`31.2 GiB`"""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {UNITS[unit]}" if unit else f"{size:.0f} {UNITS[0]}"


def training_command(folder: Path, finished: Finished) -> str:
    """A command that trains with the shards, to be copied into a shell."""
    return shlex.join(["python", "-m", "trainer.train", "data=webdataset", *overrides(folder, finished)])


def overrides(folder: Path, finished: Finished) -> list[str]:
    """What tells the trainer where the shards are and how to read them."""
    keys = {TRAIN: "data.train", VAL: "data.val"}
    given = [_override(keys[name], folder / pattern_of(finished.parts[name].shards)) for name in keys if name in finished.parts]
    if any(part.several for part in finished.parts.values()):
        given.append("data.caption_lines=true")
    return given


def pattern_of(names: list[str]) -> str:
    """`train-{000000..000123}.tar`"""
    if len(names) == 1:
        return names[0]
    stem = names[0].rpartition("-")[0]
    first, last = (name.rpartition("-")[2].removesuffix(".tar") for name in (names[0], names[-1]))
    return f"{stem}-{{{first}..{last}}}.tar"


def _override(key: str, pattern: Path) -> str:
    text = str(pattern)
    return f'{key}="{text}"' if SPECIAL & set(text) else f"{key}={text}"
