"""Draws bar.svg and leet.svg: what a run shows in a terminal while it trains, and what wandb's viewer shows of it afterwards.

    python -m venv /tmp/drawing && /tmp/drawing/bin/pip install pexpect pyte rich
    .venv/bin/torchrun --nproc-per-node 2 -m trainer.train experiment=demo        # the run that the viewer shows
    /tmp/drawing/bin/python docs/pictures/terminal.py runs/demo

The programs run in a terminal of their own, whose screen is drawn as it is.
"""

import io
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
WIDTH = 100
NAMES = {"brown": "yellow", "brightblack": "bright_black", "default": None}
"""Colours that rich calls otherwise than pyte."""


def screen_of(command: list[str], rows: int, is_shown: Callable[[str], bool], seconds: float, folder: Path) -> pyte.Screen:
    """The screen once something is shown, or after so long; the program is then ended."""
    screen = pyte.Screen(WIDTH, rows)
    stream = pyte.ByteStream(screen)
    environment = os.environ | {
        "TERM": "xterm-256color",
        "COLUMNS": str(WIDTH),
        "LINES": str(rows),
        "WANDB_ERROR_REPORTING": "false",
    }
    program = pexpect.spawn(command[0], command[1:], dimensions=(rows, WIDTH), env=environment, cwd=str(folder))
    until = time.monotonic() + seconds
    while time.monotonic() < until and not is_shown("\n".join(screen.display)):
        try:
            stream.feed(program.read_nonblocking(1 << 16, timeout=0.2))
        except pexpect.TIMEOUT:
            continue
        except pexpect.EOF:
            break
    program.kill(15)
    return screen


def draw(screen: pyte.Screen, title: str, path: Path) -> None:
    """A screen as a picture, without the empty lines at its end."""
    lines = [line_of(screen, row) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    console.save_svg(str(path), title=title)


def line_of(screen: pyte.Screen, row: int) -> Text:
    """A line with its colours."""
    cells = [screen.buffer[row][column] for column in range(screen.columns)]
    line = Text()
    for (front, back, bold, reverse), same in itertools.groupby(cells, lambda cell: (cell.fg, cell.bg, cell.bold, cell.reverse)):
        style = Style(color=colour(front), bgcolor=colour(back), bold=bold, reverse=reverse)
        line.append("".join(cell.data for cell in same), style)
    return line


def colour(name: str) -> str | None:
    """As rich calls it."""
    if name in NAMES:
        return NAMES[name]
    return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else name.replace("bright", "bright_")


def draw_bar(run_dir: Path) -> None:
    """A copy of the run that trains on from its last checkpoint but one."""
    train = [str(PYTHON), "-m", "trainer.train", "experiment=demo", "parallel.expert_parallel=1", "log.wandb=disabled"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "runs" / "demo"
        shutil.copytree(run_dir, copy)
        *_, newest = sorted((copy / "checkpoints").glob("step-*"))
        shutil.rmtree(newest)
        shown = screen_of(train, 2, lambda text: "810/1200" in text, 500.0, Path(folder))
    draw(shown, "python -m trainer.train experiment=demo", HERE / "bar.svg")


def draw_leet(run_dir: Path) -> None:
    """The viewer, as the run says that it should be started."""
    folder = run_dir / "wandb"
    leet = ["env", f"WANDB_CONFIG_DIR={folder}", str(PYTHON.with_name("wandb")), "leet", str(folder)]
    shown = screen_of(leet, 37, lambda text: False, 8.0, Path.cwd())
    draw(shown, f"wandb leet {folder}", HERE / "leet.svg")


if __name__ == "__main__":
    draw_leet(Path(sys.argv[1]))
    draw_bar(Path(sys.argv[1]))
