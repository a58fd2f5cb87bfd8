"""What the experts of a trained model do: `python -m trainer.report RUN experts=true [output=DIR]`."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.paths import user_path
from trainer.checkpoint.files import complete_checkpoints
from trainer.checkpoint.load import WEIGHTS_ARGUMENT, take_newest
from trainer.checkpoint.trained import Trained, open_trained, place_of
from trainer.config.arguments import Argument, Command
from trainer.distributed.processes import ALONE
from trainer.engine.state import WEIGHTS
from trainer.errors import UserError, check_extra
from trainer.evaluation.expert_findings import Findings
from trainer.evaluation.expert_samples import read_samples
from trainer.output import reader_may_leave
from trainer.report.expert_findings import check_experts, find
from trainer.report.expert_page import PAGE, experts_table, write_experts, write_overview
from trainer.report.html.experts import FOLDER as EXPERTS
from trainer.report.html.write import write_page
from trainer.report.runs import is_run, read_run
from trainer.training.directory import REPORT
from trainer.training.inputs import locate_data

SAMPLES = 512
COMMAND = Command(
    "trainer.report",
    "Show what the experts of a trained model do, on a part of its run's own evaluation data: which share of the image and text "
    "tokens each takes, its typical words, the patches it is surest of, and what is lost without it, by modality, class and "
    "word. One process.",
    (
        Argument("runs", "DIR,DIR", "run directories, checkpoints, or exports, each shown by itself", required=True),
        Argument(
            "experts",
            "WHICH",
            "true: the newest checkpoint of a run directory; all: each of its checkpoints",
            required=True,
            choices=("true", "all"),
        ),
        Argument("output", "DIR", f"where {PAGE}, the numbers and the pictures go (default: tables are printed)"),
        Argument("samples", "N", f"images to look at, of each evaluation set, with their captions (default: {SAMPLES})"),
        Argument(
            "atlas", "WHETHER", "false leaves out what is lost without each expert, most of the work", choices=("true", "false")
        ),
        WEIGHTS_ARGUMENT,
    ),
    overrides="set a key of the run's own configuration, such as data.val=SHARDS, eval.zeroshot=PATH or eval.batch_size=64",
    word="runs",
    several=True,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a command line asks for. places: checkpoints and exports; overrides: of the runs' configurations."""

    places: list[Path]
    kind: str
    samples: int
    with_atlas: bool
    output: Path | None
    overrides: list[str]


def asks_for_experts(arguments: Sequence[str]) -> bool:
    """Whether a command line of trainer.report is about experts."""
    return any(argument.lstrip("-").partition("=")[0] == "experts" for argument in arguments)


def read_request(arguments: list[str]) -> Request:
    """What a command line means. Raises UserError for what is missing or mistyped, and for a place without a model."""
    given = COMMAND.read(arguments)
    values = given.values
    places = [place for run in values["runs"].split(",") for place in _places(run, values["experts"] == "all")]
    samples = values.get("samples", str(SAMPLES))
    if not (samples.isdigit() and int(samples) > 1):
        raise UserError(f"samples={samples} must be a number of images, at least 2")
    output = user_path(values["output"], "output") if "output" in values else None
    if output is not None:
        check_extra("matplotlib", "report", "pictures need matplotlib", "; or leave out output=, and only the tables are printed")
    return Request(
        list(dict.fromkeys(places)),
        values.get("weights", WEIGHTS),
        int(samples),
        values.get("atlas", "true") == "true",
        output,
        given.overrides,
    )


def _places(run: str, every: bool) -> list[Path]:
    folder, place = user_path(run, "runs"), place_of(run, "runs")
    is_run = place not in (folder, folder.resolve())
    return complete_checkpoints(folder) if every and is_run else [place]


def open_place(place: Path, request: Request) -> Trained:
    """The model of a checkpoint or an export. Raises UserError for one that cannot be opened or has no experts."""
    trained = open_trained(place, request.kind, request.overrides)
    check_experts(trained)
    return trained


def show_experts(request: Request, arguments: Sequence[str]) -> None:
    """Measure, print the tables, and write the pages. Raises UserError for what cannot be read or written."""
    command = f"python -m trainer.report {shlex.join(arguments)}"
    folders = folder_names(request.places)
    found: list[Findings] = []
    for place, folder in zip(request.places, folders, strict=True):
        trained = open_place(place, request)
        samples = read_samples(locate_data(trained.config, ALONE), request.samples)
        found.append(find(trained, samples, request.with_atlas))
        _print(found[-1])
        if request.output is not None:
            write_experts(found[-1], command, request.output / folder)
    if request.output is not None:
        if len(found) > 1:
            write_overview(found, folders, command, request.output)
        with reader_may_leave():
            print(f"wrote {request.output / PAGE}")
        _refresh(request.output)


def _refresh(output: Path) -> None:
    """Where the output is the place in a run's directory from which its page takes the experts, write that page again."""
    run_dir = output.absolute().parent
    if output.name == EXPERTS and is_run(run_dir):
        try:
            write_page([read_run(run_dir)], run_dir / REPORT)
        except UserError as problem:
            _log.warning("%s", problem)  # it was not asked for
            return
        with reader_may_leave():
            print(f"wrote {run_dir / REPORT}")


def folder_names(places: Sequence[Path]) -> list[str]:
    """A folder for each place: itself for a single one, else one of its name, numbered where two have the same."""
    if len(places) == 1:
        return ["."]
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, start=1)]
    return names


def _print(findings: Findings) -> None:
    with reader_may_leave():
        for index in findings.specialists:
            print(f"{findings.name}, block {index}\n{experts_table(index, findings)}")


def main(arguments: list[str]) -> None:
    """The whole command; the newest checkpoint is chosen again if its run deletes it meanwhile."""
    take_newest(lambda: read_request(arguments), lambda request: show_experts(request, arguments))
