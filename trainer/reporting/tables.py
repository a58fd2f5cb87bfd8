"""The tables a run prints: who computes what at the start, and the results at the end."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypedDict

from rich import box
from rich.console import Console
from rich.table import Table

from trainer.output import forget_reader

_LAYOUT_WIDTH, _SUMMARY_WIDTH, _FACTS_WIDTH = 100, 80, 120  # characters, where there is no terminal to ask
_ALL_RANKS = 16  # up to this many are all shown
_FIRST_RANKS, _LAST_RANKS = 8, 2  # shown of more


class LayoutRow(TypedDict):
    """One rank.

    device: "cpu", "cuda:0 NVIDIA H200", …; ep_rank: its place in its expert-parallel group; experts: indices of those it owns,
    none in a dense model.
    """

    rank: int
    host: str
    device: str
    ep_rank: int
    experts: Sequence[int]


def layout_table(rows: list[LayoutRow]) -> None:
    """Print which rank runs where and which experts it owns; the middle ranks of many are counted, not shown."""
    console = _console(_LAYOUT_WIDTH)
    routed = any(row["experts"] for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("host", overflow="fold")
    table.add_column("device", overflow="fold")
    if routed:
        table.add_column("EP rank", justify="right")
        table.add_column("experts", overflow="fold")
    many = len(rows) > _ALL_RANKS
    for row in rows[:_FIRST_RANKS] if many else rows:
        table.add_row(*_layout_cells(row, routed))
    if many:
        table.add_row("…", f"{len(rows) - _FIRST_RANKS - _LAST_RANKS} more ranks", style="dim")
        for row in rows[-_LAST_RANKS:]:
            table.add_row(*_layout_cells(row, routed))
    console.print(table)


def facts_table(rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
    """Print (what, value) rows; a `what` that begins with blanks belongs to the one above it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False, title=title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console(_FACTS_WIDTH).print(table)


def summary_table(title: str, rows: Sequence[tuple[str, str, str]], notes: Sequence[tuple[str, str]]) -> None:
    """Print a run's results.

    rows: (what, value, what chance would give), the last empty where that means nothing; a row of only `what` heads a section.
    notes: (label, text), printed below, each text (a path, a command) on a line of its own that can be copied whole.
    """
    console = _console(_SUMMARY_WIDTH)
    with_chance = any(chance for _, _, chance in rows)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold", show_header=with_chance
    )
    table.add_column("")
    table.add_column("result", justify="right", overflow="fold")
    if with_chance:
        table.add_column("chance", justify="right", style="dim", overflow="fold")
    for what, value, chance in rows:
        is_heading = not value and not chance
        table.add_row(
            what if is_heading else f"  {what}", value, *([chance] if with_chance else []), style="bold" if is_heading else None
        )
    console.print(table)
    _print_notes(console, notes)


def sweep_table(title: str, rows: Sequence[tuple[str, str, str, str]], notes: Sequence[tuple[str, str]]) -> None:
    """Print the runs of a sweep: (index, what differs, run directory, log); notes as in `summary_table`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in ("index", "run", "run directory", "log"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = _console(_FACTS_WIDTH)
    console.print(table)
    _print_notes(console, notes)


def note(label: str, text: str) -> None:
    """Print one more of the notes below a table."""
    _print_notes(_console(_SUMMARY_WIDTH), [(label, text)])


def _print_notes(console: Console, notes: Sequence[tuple[str, str]]) -> None:
    for label, text in notes:
        console.print(label, style="dim")
        # Not wrapped and not cut: a terminal may break the line to show it, but copies it as one.
        console.print(f"  {text}", soft_wrap=True)


class _Console(Console):
    """rich's own ends the program when the reader of standard output has left, and a full disk would end it too."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print what can be printed: a table is no reason to lose a run."""
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Go on without a reader."""
        forget_reader()


def _console(width: int) -> Console:
    # Names and paths are printed as they are: no [markup], no colours guessed from digits.
    return _Console(width=None if Console().is_terminal else width, markup=False, highlight=False)


def _layout_cells(row: LayoutRow, routed: bool) -> list[str]:
    cells = [str(row["rank"]), row["host"], row["device"]]
    return [*cells, str(row["ep_rank"]), _ranges(row["experts"])] if routed else cells


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 8`"""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
