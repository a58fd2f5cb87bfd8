"""Tables of paths and captions: CSV and TSV in any usual form, and Parquet."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from model.paths import is_elsewhere
from model.text import clean_text
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.names import IMAGES
from trainer.data.shards.patterns import name_some
from trainer.data.shards.samples import Sample
from trainer.data.text_files import encoding_of
from trainer.errors import UserError, check_extra, did_you_mean, reason
from trainer.shards.source import Found, named, read_file
from trainer.shards.unfit import NO_CAPTION, NO_IMAGE, Bad, Unfit

ENDINGS = (".csv", ".tsv", ".parquet")
PATHS = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path", "img_path", "img")
CAPTIONS = ("caption", "captions", "text", "title", "description")
"""Names of columns, the likeliest first."""
SEPARATORS = ",\t;|"
HEAD = 1 << 16  # bytes in which the first line ends
UNKNOWN = "img"  # the extension of a file whose name has none: its content tells what it is

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Names of columns as typed, None for the likeliest that is there; caption: one, or several with commas."""

    path: str | None = None
    caption: str | None = None


class Table:
    """Its samples: an image file and all captions that rows with its path give. The key is the path without the extension."""

    merges = True
    rule = CaptionRule(lines=True)

    def __init__(self, tables: Sequence[Path], columns: Columns, root: Path | None, metadata: bool) -> None:
        """root: what paths are relative to, None for each table's folder; metadata: whether to keep its other columns."""
        self.told = f"rows of {tables[0]}" if len(tables) == 1 else f"rows of {len(tables)} tables, {tables[0]} … {tables[-1]}"
        self._tables = tables
        self._columns = columns
        self._root = root
        self._metadata = metadata

    def find(self) -> Iterator[Found | Bad]:
        """Row by row. Raises UserError for a table that cannot be read, or lacks a column."""
        for number, table in enumerate(self._tables):
            names, rows = _rows_of(table)
            path_column = _column(names, self._columns.path, PATHS, "path_column", table)
            captions = self._caption_columns(names, table)
            others = [name for name in names if name != path_column and name not in captions] if self._metadata else []
            for line, row in rows:
                path = row.get(path_column)
                if path is None or path == "":
                    yield Bad(f"{table.name}, row {line}", NO_IMAGE, f"its '{path_column}' is empty")
                    continue
                if not isinstance(path, str):
                    kind = "the images themselves" if isinstance(path, (bytes, dict)) else f"{type(path).__name__} values"
                    raise UserError(f"{table}: column '{path_column}' holds {kind}, not paths of images; {_choose(names)}")
                if is_elsewhere(path):
                    raise UserError(f"{table}, row {line}: '{path[:80]}' is an address: load the images first (img2dataset)")
                texts = [text for name in captions for text in _texts(row.get(name))]
                more = {name: value for name in others if (value := _plain(row.get(name))) not in (None, "")}
                yield Found(_key_of(path), [number, path, texts, more])

    def read(self, places: Sequence[Any]) -> Sample:
        """places: all rows of one image."""
        number, path, _, more = places[0]
        texts = list(dict.fromkeys(text for place in places for text in place[2]))
        if not texts:
            raise Unfit(NO_CAPTION, "its caption is empty")
        extension = Path(path).suffix[1:].lower()
        root = self._root or self._tables[number].parent
        files = {extension if extension in IMAGES else UNKNOWN: read_file(root / path), "txt": "\n".join(texts).encode()}
        if more:
            files["json"] = json.dumps(more).encode()
        return Sample(str(self._tables[number]), "", files)

    def _caption_columns(self, names: list[str], table: Path) -> list[str]:
        asked = self._columns.caption
        if asked is None or asked in names:
            return [_column(names, asked, CAPTIONS, "caption_column", table)]
        return [_column(names, name, CAPTIONS, "caption_column", table) for name in asked.split(",")]


def list_tables(pattern: str) -> list[Path]:
    """The tables that `input` names. Raises UserError when one is missing."""
    tables = named(pattern)
    missing = [table for table in tables if not table.is_file()]
    if missing or not tables:
        raise UserError(f"input={pattern}: {name_some(missing) if missing else 'no such table'} does not exist")
    return tables


def _key_of(path: str) -> str:
    """The path without its extension, if that is an image's."""
    stem, dot, extension = path.rpartition(".")
    return (stem if dot and extension.lower() in IMAGES else path).removeprefix("./").lstrip("/")


def _texts(value: Any) -> list[str]:
    """The captions in a cell: a text, or a list of texts in Parquet."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (clean_text(entry) for entry in values if isinstance(entry, str)) if text]


def _plain(value: Any) -> Any:
    """A cell as JSON can hold it; None for what it cannot, such as another image."""
    if isinstance(value, (bytes, dict)) or value != value:  # NaN
        return None
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (str, int, float, bool)) else value and str(value)


def _column(names: list[str], asked: str | None, usual: Sequence[str], option: str, table: Path) -> str:
    if asked is not None:
        if asked not in names:
            raise UserError(f"{option}={asked}: {table} has no such column{did_you_mean(asked, names)}; {_choose(names)}")
        return asked
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is not None:
        return found
    if {"url", "status"} <= lower.keys():
        raise UserError(f"input={table} is img2dataset's record of a shard: give the folder that it is in")
    raise UserError(f"{table}: no column is called {', '.join(usual[:4])} or the like: set {option}=NAME; {_choose(names)}")


def _choose(names: list[str]) -> str:
    shown = ", ".join(clean_text(str(name))[:40] for name in names[:12])
    return f"its columns are {shown}{', …' if len(names) > 12 else ''}"


def _rows_of(table: Path) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """The names of the columns, and the rows with their number, from 1."""
    return _parquet(table) if table.suffix.lower() == ".parquet" else _text(table)


def _parquet(table: Path) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    check_extra("pyarrow", "parquet", f"{table}: Parquet needs pyarrow", "; or write the table as CSV")
    import pyarrow
    from pyarrow import parquet

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        try:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as problem:
            raise UserError(f"{table} cannot be read after row {number}: {reason(problem)}") from None

    try:
        file = parquet.ParquetFile(table)
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(f"{table} cannot be read as Parquet: {reason(problem)}") from None
    return list(file.schema_arrow.names), rows()


def _text(table: Path) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    try:
        with table.open("rb") as content:
            head = content.read(HEAD)
    except OSError as problem:
        raise UserError(f"{table} cannot be read: {reason(problem)}") from None
    encoding = encoding_of(head)
    first = head.decode(encoding, "replace").partition("\n")[0]
    separator = "\t" if table.suffix.lower() == ".tsv" else max(SEPARATORS, key=first.count)
    lines = _lines(table, encoding, separator)
    names = next(lines, (0, []))[1]
    if not names:
        raise UserError(f"{table} is empty: its first line should name the columns")

    def rows() -> Iterator[tuple[int, Row]]:
        for number, cells in lines:
            if cells:
                yield number, dict(zip(names, cells, strict=False))

    return names, rows()


def _lines(table: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and its number; that of the names is 0."""
    number = -1
    try:
        with table.open(encoding=encoding, newline="") as content:
            for number, cells in enumerate(csv.reader(content, delimiter=separator)):
                yield number, cells
    except UnicodeDecodeError:
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{table} is not {name} (after row {max(number, 0)}): convert it to UTF-8") from None
    except csv.Error as problem:
        told = "a quotation mark is not closed" if "field larger" in str(problem) else reason(cast(Exception, problem))
        raise UserError(f"{table}, row {number + 1}: {told}") from None
    except OSError as problem:
        raise UserError(f"{table} cannot be read: {reason(problem)}") from None
