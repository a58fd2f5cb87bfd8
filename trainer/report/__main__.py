"""Runs as tables, plots and a page: `python -m trainer.report RUN… [output=DIR]`, from what they left on disk."""

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.paths import user_path
from trainer.config.arguments import Argument, Command
from trainer.distributed.program import exit_with
from trainer.errors import UserError, check_extra, did_you_mean, reason
from trainer.files import write_whole
from trainer.output import reader_may_leave
from trainer.report import experts
from trainer.report.groups import Group, group_runs
from trainer.report.html.write import check_drawable, write_page
from trainer.report.runs import RunRecord, read_runs
from trainer.report.tables import TABLE_METRICS, results_table, runs_table
from trainer.reporting.log_lines import log_to_terminal
from trainer.training.directory import REPORT

CURVES = ("routing/success/text", "routing/success/image", "eval/zeroshot/top1", "train/loss_contrastive")
"""What is plotted over the steps, if any run has it."""
RESULTS = "results.md"

_log = logging.getLogger(__name__)

COMMAND = Command(
    "trainer.report",
    "Put finished runs into tables (mean, standard deviation over seeds, number of runs) and plots, and runs that may still be "
    f"training into a page for a browser, {REPORT}. Runs that differ only in their seed share one row.",
    (
        Argument("runs", "DIR,DIR", "run directories, or folders that contain some, such as a sweep's", required=True),
        Argument(
            "output",
            "DIR",
            f"where {REPORT}, {RESULTS} and the plots go (default: only {REPORT}, in the given folder, or of several "
            "in this one)",
        ),
        Argument("metrics", "A,B", "the columns of the table"),
        Argument("by", "KEY,KEY", "the keys that distinguish settings (default: all that differ)"),
        Argument("against", "KEY", "a key with numbers, or a metric: the metrics are plotted against it as well"),
        Argument("last", "STEPS", "training metrics are means over this many last steps (default: 100)"),
        Argument("title", "TEXT", "heading of the page"),
        Argument("experts", "true", "show what the experts of each run do instead; `experts=true -h` tells how"),
    ),
    word="runs",
    several=True,
)


@dataclass(frozen=True)
class Report:
    """What a command line asks for. runs: all of them; groups: the finished ones, one group per setting; page: where it goes."""

    runs: list[RunRecord]
    groups: list[Group]
    metrics: list[str]
    last_steps: int
    against: str | None
    title: str | None
    output: Path | None
    page: Path


def read_arguments(arguments: list[str]) -> Report:
    """What a command line means. Raises UserError for what is missing or mistyped.

    So it does if something is asked about finished runs, and there is none.
    """
    values = COMMAND.read(arguments).values
    places = [user_path(place, "runs") for place in values["runs"].split(",")]
    every = read_runs(places)
    runs = _finished(every, needed=bool({"metrics", "by", "against", "last"} & values.keys()))
    groups = group_runs(runs, values["by"].split(",") if "by" in values else None)
    known = list(dict.fromkeys(name for run in runs for name in run.metrics()))
    metrics = values["metrics"].split(",") if "metrics" in values else [name for name in TABLE_METRICS if name in known]
    for name in metrics:
        if name not in known:
            raise UserError(f"metrics={name}: no run has recorded this metric{did_you_mean(name, known)}")
    against = values.get("against")
    if against is not None:
        _check_numbers(against, groups, known)
    last = values.get("last", "100")
    if not (last.isdigit() and int(last) > 0):
        raise UserError(f"last={last} must be a number of steps, at least 1")
    output = user_path(values["output"], "output") if "output" in values else None
    if output is not None:
        check_extra("matplotlib", "report", "plots need matplotlib", "; or leave out output=, and only the table is printed")
        check_drawable()
    folder = output or (places[0] if len(places) == 1 else Path())
    return Report(every, groups, metrics, int(last), against, values.get("title"), output, folder / REPORT)


def _finished(runs: Sequence[RunRecord], needed: bool) -> list[RunRecord]:
    """The runs that are finished; the others are named in a warning."""
    unfinished = [run for run in runs if not run.is_finished]
    for run in unfinished:
        _log.warning("%s is left out of the table: it is only at step %d of %d", run.folder, run.step, run.steps)
    finished = [run for run in runs if run.is_finished]
    if needed and not finished:
        raise UserError(f"none of the {len(runs)} runs has reached its last step: let them finish first")
    return finished


def _check_numbers(key: str, groups: Sequence[Group], metrics: Sequence[str]) -> None:
    if key in metrics:
        return
    keys = list(groups[0].setting)
    if key not in keys:
        raise UserError(
            f"against={key}: the runs do not differ in it{did_you_mean(key, [*keys, *metrics])}; they differ in {', '.join(keys)}"
        )
    values = [group.setting[key] for group in groups]
    if not all(isinstance(value, (int, float)) for value in values):
        raise UserError(f"against={key}: its values are not all numbers ({', '.join(map(str, values))})")


def page(report: Report, arguments: Sequence[str], plots: Sequence[Path]) -> str:
    """The page as Markdown: table, plots, every run with its seed, and the command that made it."""
    counts = sorted({len(group.runs) for group in report.groups})
    runs = f"{counts[0]} run{'s' if counts[0] > 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs"
    parts = [
        f"# {report.title or 'Results'}",
        f"Mean ± standard deviation over {runs} of each setting (`n`). Evaluations are the last ones; training metrics are "
        f"means over the last {report.last_steps} steps.",
        results_table(report.groups, report.metrics, report.last_steps).rstrip("\n"),
        *(f"![{plot.stem}]({plot.name})" for plot in plots),
        "## Runs",
        runs_table(report.groups).rstrip("\n"),
        f"Made by `python -m trainer.report {shlex.join(arguments)}`.",
    ]
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, arguments: Sequence[str], folder: Path) -> None:
    """Write the page and its plots. Raises UserError when they cannot be written."""
    from trainer.report.plots import plot_against, plot_curves  # matplotlib is an extra

    known = {name for group in report.groups for run in group.runs for name in run.metrics()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = [folder / "curves.png"]
        plot_curves(report.groups, [name for name in CURVES if name in known], plots[0])
        if report.against is not None:
            plots.append(folder / "against.png")
            plot_against(report.groups, report.against, report.metrics, report.last_steps, plots[1])
        write_whole(folder / RESULTS, page(report, arguments, plots).encode())
    except OSError as problem:
        raise UserError(f"the report cannot be written to {folder} ({reason(problem)}): choose another output") from problem


def _print_and_write(report: Report, arguments: Sequence[str]) -> None:
    written = []
    if report.groups:
        with reader_may_leave():
            print(results_table(report.groups, report.metrics, report.last_steps))
        if report.output is not None:
            write_report(report, arguments, report.output)
            written.append(report.output / RESULTS)
    try:
        write_page(report.runs, report.page, report.title)
        written.append(report.page)
    except UserError as problem:
        if report.output is not None:
            raise
        _log.warning("%s", problem)  # it was not asked for
    with reader_may_leave():
        for path in written:
            print(f"wrote {path}")


def main() -> None:
    """Read the command line, print the table, and write what was asked for."""
    arguments = sys.argv[1:]
    log_to_terminal(rank=0)
    try:
        if experts.asks_for_experts(arguments):
            experts.main(arguments)
            return
        report = read_arguments(arguments)
        _print_and_write(report, arguments)
    except UserError as problem:
        exit_with(problem)


if __name__ == "__main__":
    main()
