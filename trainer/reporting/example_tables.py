"""Tables with pictures: what a model made of some images, as a page that opens from disk."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from trainer.files import write_whole

Cell = str | float | Tensor
"""Text, a number, or an image: uint8 `[3, H, W]`."""
SIDE = 128  # pixels: of the pictures on a page
STYLE = """
:root { color-scheme: light dark }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: middle; border-bottom: 1px solid #8884 }
th { font-weight: 600; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.miss td { background: #d9770622 }
img { display: block; width: 96px; image-rendering: auto }
"""


@dataclass(frozen=True)
class ExampleTable:
    """hits: of each row, whether the model was right."""

    columns: list[str]
    rows: list[list[Cell]]
    hits: list[bool]


def picture(image: Tensor) -> Image.Image:
    """uint8 `[3, H, W]` as Pillow has it."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def write_page(title: str, tables: Mapping[str, ExampleTable], path: Path) -> None:
    """Write one HTML file with the pictures in it. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(_section(name, table) for name, table in tables.items())
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    write_whole(path, page.encode("utf-8", "replace"))


def _section(name: str, table: ExampleTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(_row(cells, is_hit) for cells, is_hit in zip(table.rows, table.hits, strict=True))
    told = f"{sum(table.hits)} of {len(table.hits)} right; the others are shaded"
    return f'<h2>{escape(name)}</h2><p>{told}</p>\n<div class="wide"><table><tr>{head}</tr>\n{rows}\n</table></div>'


def _row(cells: Sequence[Cell], is_hit: bool) -> str:
    begin = "<tr>" if is_hit else '<tr class="miss">'
    return f"{begin}{''.join(map(_cell, cells))}</tr>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Tensor):
        small = picture(cell)
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=85)
        return f'<td><img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"></td>'
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    shown = str(cell) if isinstance(cell, int) else f"{cell:.3f}"
    return f'<td class="number">{shown}</td>'
