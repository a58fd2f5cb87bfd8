"""What a command line of `trainer.shards` asks for."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.paths import expand, is_elsewhere, user_path
from trainer.config.arguments import Argument, Command
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.patterns import ENDINGS as SHARD_ENDINGS
from trainer.data.shards.patterns import part_of, tars_in
from trainer.errors import UserError, reason
from trainer.shards.convert import ENCODED, Wish
from trainer.shards.folder import Folder, is_image_name
from trainer.shards.pack import Shards
from trainer.shards.packed import Packed, list_packed
from trainer.shards.plan import Order
from trainer.shards.source import Source
from trainer.shards.table import ENDINGS as TABLE_ENDINGS
from trainer.shards.table import Columns, Table, list_tables

FOLDER, TABLE, SHARDS = "folder", "table", "shards"
KINDS = {FOLDER: "a folder of images", TABLE: "a table", SHARDS: "shards"}
OF_TABLES = {"path_column", "caption_column", "root"}
OF_CAPTIONS = {"caption_key", "caption_lines"}
"""Arguments that only tables have, and that they do not have."""
PAIRS = 10_000
FEWEST_SHARDS = 16  # so that several readers have shards of their own
SHORT_SIDE = 256
SWITCH = ("true", "false")
PATTERN = re.compile(r"[{*?\[]")
BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
NAME = re.compile(r"[A-Za-z0-9_-]+")

COMMAND = Command(
    "trainer.shards",
    "Write training shards from images with captions beside them, a table of paths and captions, img2dataset's output, or other "
    "shards. Stopped at any time, the same command goes on; the shards are the same for any number of workers.",
    (
        Argument(
            "input",
            "PLACE",
            "a folder of images with .txt or .json beside them, a .csv, .tsv or .parquet file of paths and captions, or shards: "
            "a folder, a pattern with {000..123}, an address",
            required=True,
        ),
        Argument("output", "DIR", "a new folder, or one that this command has begun", required=True),
        Argument("pairs", "N", f"of a shard (default: {PAIRS}, fewer if there would be fewer than {FEWEST_SHARDS} shards)"),
        Argument("max_bytes", "SIZE", "of a shard, such as 500M or 2G, besides pairs= or in place of it"),
        Argument("val", "SHARE", "a part to hold out for evaluation: 0.01, or a number of samples; the same for every seed"),
        Argument(
            "short_side",
            "PIXELS",
            f"larger images are made smaller, to this (default: {SHORT_SIDE}; for shards `none`: every image is left as it is)",
        ),
        Argument("format", "NAME", "of images that are made smaller (default: jpeg)", choices=tuple(ENCODED)),
        Argument("quality", "1-100", "of their encoding (default: 95)"),
        Argument("background", "R,G,B", "what shows through their transparent parts, as data.background (default: 255,255,255)"),
        Argument("min_side", "PIXELS", "leave out images with a shorter side than this"),
        Argument("max_aspect", "RATIO", "leave out images whose longer side is more than this times the shorter one"),
        Argument("caption_key", "NAME", "the key of .json that has the caption or captions, as data.caption_key"),
        Argument(
            "caption_lines",
            "true",
            "each line of a .txt is a separate caption, as data.caption_lines",
            choices=SWITCH,
        ),
        Argument("path_column", "NAME", "of a table (default: path, filepath, file, image, … whichever there is)"),
        Argument("caption_column", "NAME,NAME", "of a table, one or several (default: caption, text, title, …)"),
        Argument("root", "DIR", "what the paths in a table are relative to (default: the table's folder)"),
        Argument("metadata", "true", "false: leave out .json and a table's other columns", choices=SWITCH),
        Argument("dedup", "true", "keep only the first sample of each key (default: false)", choices=SWITCH),
        Argument("shuffle", "false", "false: keep the order of the input (default: true)", choices=SWITCH),
        Argument("seed", "N", "of the order (default: 0)"),
        Argument("name", "WORD", "put before the names of the shards: WORD-train-000000.tar"),
        Argument("workers", "N", "processes that read and convert (default: one for each core; 0: this one does)"),
        Argument("dry", "true", "only look: how many samples there are, what some of them amount to", choices=SWITCH),
    ),
    word="input",
)


@dataclass(frozen=True)
class Request:
    """What a command line asks for. kind: of input, one of KINDS; pairs, max_bytes: of a shard, None if not given."""

    kind: str
    input: str
    output: Path
    wish: Wish
    order: Order
    rule: CaptionRule
    columns: Columns
    root: Path | None
    pairs: int | None
    max_bytes: int | None
    name: str
    workers: int
    dry: bool

    @property
    def settings(self) -> dict[str, Any]:
        """All that the shards depend on, by argument: a stopped writer only goes on with the same."""
        order, wish = self.order, self.wish
        return {
            "input": self.input,
            "pairs": self.pairs,
            "max_bytes": self.max_bytes,
            "val": order.val,
            "short_side": wish.short_side,
            "format": wish.format,
            "quality": wish.quality,
            "background": ",".join(map(str, wish.background)),
            "min_side": wish.min_side,
            "max_aspect": wish.max_aspect,
            "caption_key": self.rule.key,
            "caption_lines": self.rule.lines,
            "path_column": self.columns.path,
            "caption_column": self.columns.caption,
            "root": self.root and str(self.root),
            "metadata": wish.metadata,
            "dedup": order.dedup,
            "shuffle": order.seed is not None,
            "seed": order.seed,
            "name": self.name,
        }

    def shards(self, items: int) -> Shards:
        """The shards for so many items."""
        pairs = self.pairs
        if pairs is None and self.max_bytes is None:
            pairs = max(1, min(PAIRS, -(-items // FEWEST_SHARDS)))
        return Shards(self.output, self.name, pairs, self.max_bytes)

    def open_source(self, work: Path) -> Source:
        """The input. work: a folder for copies. Raises UserError if there is nothing."""
        if self.kind == TABLE:
            return Table(list_tables(self.input), self.columns, self.root, self.wish.metadata)
        if self.kind == SHARDS:
            return Packed(list_packed(self.input), self.rule, work)
        return Folder(Path(self.input), self.rule)


def read_arguments(arguments: list[str]) -> Request:
    """What a command line means. Raises UserError for what is missing or mistyped, or an input that is not there."""
    values = _Values(COMMAND.read(arguments).values)
    kind, place = _input(values["input"])
    for name in OF_TABLES & values.keys() if kind != TABLE else OF_CAPTIONS & values.keys():
        raise UserError(f"{name}= is {'not ' * (kind == TABLE)}for tables, and input={values['input']} is {KINDS[kind]}")
    lines = values.flag("caption_lines", None)
    default_side = None if kind == SHARDS else SHORT_SIDE
    side = None if values.get("short_side") == "none" else values.number("short_side", default_side)
    least_side, aspect = values.number("min_side", 1), values.real("max_aspect", None)
    if aspect is not None and aspect < 1:
        raise UserError(f"max_aspect={aspect:g} must be at least 1, the ratio of a square")
    quality = values.number("quality", 95)
    if quality is not None and quality > 100:
        raise UserError(f"quality={quality} must be from 1 to 100")
    wish = Wish(
        short_side=side,
        format=values.get("format", "jpeg"),
        quality=quality or 95,
        min_side=least_side or 1,
        max_aspect=aspect,
        background=_colour(values.get("background", "255,255,255")),
        metadata=bool(values.flag("metadata", True)),
    )
    seed = values.number("seed", 0, at_least=0) if values.flag("shuffle", True) else None
    if "seed" in values and seed is None:
        raise UserError("seed= is for shuffle=true; leave one of them out")
    name = values.get("name", "")
    if "name" in values and (not NAME.fullmatch(name) or part_of([name]) is not None):
        raise UserError(f"name={name}: a word of letters, digits, - and _, without train, val, test or the like")
    workers = values.number("workers", _cores(), at_least=0)
    return Request(
        kind,
        place,
        user_path(values["output"], "output").absolute(),
        wish,
        Order(_share(values.get("val", "0")), seed, bool(values.flag("dedup", False))),
        CaptionRule(values.get("caption_key"), lines),
        Columns(values.get("path_column"), values.get("caption_column")),
        user_path(values["root"], "root").absolute() if "root" in values else None,
        values.number("pairs", None),
        _bytes(values["max_bytes"]) if "max_bytes" in values else None,
        name,
        0 if workers is None else workers,
        bool(values.flag("dry", False)),
    )


class _Values(dict[str, str]):
    """The values that were given, by argument."""

    def flag(self, name: str, default: bool | None) -> bool | None:
        return self[name] == "true" if name in self else default

    def number(self, name: str, default: int | None, at_least: int = 1) -> int | None:
        if name not in self:
            return default
        text = self[name].replace("_", "")
        if not (text.isdecimal() and int(text) >= at_least):
            raise UserError(f"{name}={self[name]} must be a whole number, at least {at_least}")
        return int(text)

    def real(self, name: str, default: float | None) -> float | None:
        if name not in self:
            return default
        try:
            value = float(self[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{name}={self[name]} must be a number")
        return value


def _input(text: str) -> tuple[str, str]:
    """The kind of an input, and the input with its full path."""
    place = expand(text, "input")
    if is_elsewhere(place):
        return SHARDS, place
    path = Path(place).absolute()
    try:
        if path.name.lower().endswith(TABLE_ENDINGS):
            return TABLE, str(path)
        if path.is_dir():
            has_shards = bool(tars_in(path))
            if has_shards and any(is_image_name(entry.name) for entry in path.iterdir()):
                raise UserError(f"input={text} contains shards and images: give '{path}/*.tar', or put them apart")
            return (SHARDS if has_shards else FOLDER), str(path)
    except OSError as problem:
        raise UserError(f"input={text}: {reason(problem)}") from None
    if path.name.lower().endswith(SHARD_ENDINGS) or PATTERN.search(place):
        return SHARDS, str(path)
    if path.exists():
        raise UserError(f"input={text} is neither a folder, a table ({', '.join(TABLE_ENDINGS)}) nor shards (.tar)")
    raise UserError(f"input={text} does not exist")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if value < 0 or (value >= 1 and "." in text) or (value >= 1 and value != int(value)) or not math.isfinite(value):
        raise UserError(f"val={text} must be a share below 1, such as 0.01, or a number of samples")
    return value


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(float(found[1]) * BYTES[found[2].upper()]) if found else 0
    if size < 1:
        raise UserError(f"max_bytes={text} must be a size such as 500M or 2G")
    return size


def _colour(text: str) -> tuple[int, int, int]:
    values = [int(part) if part.strip().isdecimal() else 256 for part in text.strip("[]").split(",")]
    if len(values) != 3 or max(values) > 255:
        raise UserError(f"background={text} must be red, green and blue from 0 to 255, such as 255,255,255")
    red, green, blue = values
    return red, green, blue


def _cores() -> int:
    """Those that this process may use, which a cluster may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
