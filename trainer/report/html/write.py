"""Put the page together: one file with its style, its script, its numbers and the library that draws them."""

import base64
import gzip
import json
import logging
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from trainer.errors import UserError, check_extra, reason
from trainer.files import write_whole
from trainer.report.html.contents import contents_of
from trainer.report.runs import RunRecord, read_run
from trainer.reporting.tables import note
from trainer.training.directory import REPORT

LIBRARY = ("plotly", "package_data/plotly.min.js")
"""The package that has it, and where."""
PARTS = "trainer.report.html"

_log = logging.getLogger(__name__)


def check_drawable() -> None:
    """Raise UserError when the extra is missing."""
    for module in ("plotly", "jinja2"):
        check_extra(module, "report", f"{REPORT} needs {module}")


def write_page(runs: Sequence[RunRecord], path: Path, title: str | None = None) -> None:
    """Write the page about these runs, finished or not. Raises UserError when it cannot be written."""
    check_drawable()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page(runs, title).encode())
    except OSError as problem:
        raise UserError(f"the page cannot be written to {path} ({reason(problem)}): choose another output") from problem


def page(runs: Sequence[RunRecord], title: str | None = None) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader  # of the extra

    environment = Environment(loader=PackageLoader(PARTS, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    contents = contents_of(runs, title)
    drawn = json.dumps(contents.drawn, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return environment.get_template("page.html").render(
        contents=contents,
        themes=contents.drawn["themes"],
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        data=_packed(drawn.encode()),
        library=_packed((files(LIBRARY[0]) / LIBRARY[1]).read_bytes()),
        style=(files(PARTS) / "page.css").read_text(),
        script=(files(PARTS) / "page.js").read_text(),
    )


def write_after_training(run_dir: Path) -> None:
    """Write a run's page beside its metrics. Whatever goes wrong is one line: a page is no reason to lose a run."""
    try:
        check_drawable()
    except UserError as problem:
        note("no page about the run", str(problem))
        return
    try:
        write_page([read_run(run_dir)], run_dir / REPORT)
    except UserError as problem:
        _log.warning("no page about this run: %s", problem)
    except Exception as problem:
        _log.warning("no page about this run (%s: %s)", type(problem).__name__, problem)
    else:
        note("the run as a page, for a browser", str(run_dir / REPORT))


def _packed(data: bytes) -> str:
    """Compressed, as text: the library alone takes 5 MB, and every browser since 2023 can unpack it."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
