"""What will be written, in which order: everything that was found, on disk, so that a stopped writer goes on as planned."""

import io
import json
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.files import write_whole
from trainer.shards.keys import WIDE, numbers_of
from trainer.shards.source import Source
from trainer.shards.unfit import REPEATED, Bad

FOUND, LEFT_OUT, ITEMS, LINES, PARTS = "found.jsonl", "left_out.jsonl", "items.npy", "lines.npy", "parts.json"
TRAIN, VAL = "train", "val"
ITEM = np.dtype([("first", np.uint64), ("count", np.uint32), ("repeat", np.uint32)])
"""An item's lines of `found.jsonl`, a range of LINES, and how many samples with the same key come before it."""
Numbered = NDArray[np.int64]
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, which spreads repetitions over the order


@dataclass(frozen=True)
class Order:
    """How to arrange what is found. val: a share below 1, or a number of samples; seed: None for the order as found."""

    val: float = 0
    seed: int | None = 0
    dedup: bool = False


@dataclass(frozen=True)
class Item:
    """A sample to write. repeat: how many with the same key come before it; places: for `Source.read`."""

    key: str
    repeat: int
    places: list[Any]


class Plan:
    """The items that `make_plan` found, by number: a range for each part. It can be sent to other processes."""

    def __init__(self, folder: Path) -> None:
        self.parts = {part: range(*ends) for part, ends in json.loads((folder / PARTS).read_text()).items()}
        self._folder = folder

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "parts": self.parts}

    def item(self, number: int) -> Item:
        """The item with a number, from 0."""
        start, count, repeat = self._items[number].tolist()
        found = [self._line(int(offset)) for offset in self._lines[start : start + count]]
        return Item(found[0][0], repeat, [place for _, place in found])

    def left_out(self) -> list[Bad]:
        """What was found but will not be tried."""
        return [Bad(*json.loads(line)) for line in (self._folder / LEFT_OUT).read_bytes().splitlines()]

    @cached_property
    def _items(self) -> NDArray[Any]:
        return np.load(self._folder / ITEMS, mmap_mode="r")

    @cached_property
    def _lines(self) -> NDArray[np.uint64]:
        return np.load(self._folder / LINES, mmap_mode="r")

    @cached_property
    def _found(self) -> Any:
        return (self._folder / FOUND).open("rb")

    def _line(self, offset: int) -> Any:
        self._found.seek(offset)
        return json.loads(self._found.readline())


def is_planned(folder: Path) -> bool:
    """Whether `make_plan` has finished there."""
    return (folder / PARTS).is_file()


def make_plan(source: Source, order: Order, folder: Path, watch: Callable[[], None]) -> Plan:
    """Find everything in the source; `watch` is told of each.

    Raises UserError if it cannot be read, OSError if the folder cannot be written.
    """
    offsets, numbers, bad = _find(source, order.seed or 0, folder / FOUND, watch)
    items, lines, repeated = _grouped(numbers[:, 0], merges=source.merges, dedup=order.dedup)
    first = lines[items["first"]] if len(items) else lines  # each item's first line, by its number
    is_val = _held_out(numbers[first, 1], order.val)
    by = first if order.seed is None else numbers[first, 2] + items["repeat"] * MIX
    arranged = np.lexsort((first, by, ~is_val))  # the last is the first criterion
    write_whole(folder / ITEMS, _as_npy(items[arranged]))
    write_whole(folder / LINES, _as_npy(offsets[lines]))
    with (folder / FOUND).open("rb") as found:
        for line in repeated:
            found.seek(int(offsets[line]))
            bad.append(Bad(json.loads(found.readline())[0], REPEATED, "dedup=true keeps the first"))
    write_whole(folder / LEFT_OUT, (json.dumps(entry).encode() + b"\n" for entry in bad))
    held_out = int(is_val.sum())
    parts = {VAL: (0, held_out), TRAIN: (held_out, len(items))}
    write_whole(folder / PARTS, json.dumps({part: ends for part, ends in parts.items() if ends[0] < ends[1]}).encode())
    return Plan(folder)


def _find(
    source: Source, seed: int, path: Path, watch: Callable[[], None]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], list[Bad]]:
    """Write down what is found: the place of each line, and Numbers of its key `[lines, 3]`; and what cannot be used."""
    offsets, numbers = array("Q"), array("Q")
    bad: list[Bad] = []

    def lines() -> Iterator[bytes]:
        offset = 0
        for found in source.find():
            watch()
            if isinstance(found, Bad):
                bad.append(found)
                continue
            line = json.dumps([found.key, found.place], separators=(",", ":")).encode() + b"\n"
            offsets.append(offset)
            numbers.extend(numbers_of(found.key, seed))
            offset += len(line)
            yield line

    write_whole(path, lines())
    return np.frombuffer(offsets, np.uint64), np.frombuffer(numbers, np.uint64).reshape(-1, 3), bad


def _grouped(identity: NDArray[np.uint64], merges: bool, dedup: bool) -> tuple[NDArray[Any], Numbered, Numbered]:
    """ITEMs, the numbers of lines that they are ranges of, and the lines that are left out as repetitions."""
    lines = np.argsort(identity, kind="stable")
    is_first = np.ones(len(lines), bool)
    is_first[1:] = identity[lines[1:]] != identity[lines[:-1]]
    starts = np.flatnonzero(is_first)
    counts = np.diff(np.append(starts, len(lines)))
    if merges or dedup:
        items = np.zeros(len(starts), ITEM)
        items["first"] = starts
        items["count"] = counts if merges else 1
        return items, lines, np.sort(lines[~is_first]) if not merges else lines[:0]
    items = np.zeros(len(lines), ITEM)
    items["first"] = np.arange(len(lines))
    items["count"] = 1
    items["repeat"] = np.arange(len(lines)) - np.repeat(starts, counts)
    return items, lines, lines[:0]


def _held_out(split: NDArray[np.uint64], val: float) -> NDArray[np.bool_]:
    """Which samples are for evaluation: equal keys always together if `val` is a share; at least one unless it is 0."""
    if 0 < val < 1 and (chosen := split < np.uint64(min(WIDE - 1, round(val * WIDE)))).any():
        return chosen
    chosen = np.zeros(len(split), bool)
    chosen[np.argsort(split, kind="stable")[: math.ceil(val)]] = True
    return chosen


def _as_npy(table: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, table)
    return content.getvalue()
