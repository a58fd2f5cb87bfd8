"""Make a project's workspace in Weights & Biases: `python -m trainer.dashboard project=ENTITY/PROJECT [to=FILE]`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from model.paths import user_path
from trainer.config.arguments import Argument, Command
from trainer.dashboard.panels import SECTIONS, SYSTEM, Panel, Section
from trainer.distributed.program import exit_with
from trainer.errors import UserError, check_extra, reason
from trainer.files import write_whole
from trainer.output import reader_may_leave
from trainer.reporting.wandb_login import quiet_settings

NAME = "LIMoE"
COLUMNS = 3
COMMAND = Command(
    "trainer.dashboard",
    "Make a workspace for a project in Weights & Biases: loss and success first, then routing by modality and by layer, "
    "evaluation, performance and system. It is a new view beside those that are there.",
    (
        Argument("project", "ENTITY/PROJECT", "the project, such as my-team/limoe; it may still be empty", required=True),
        Argument("name", "TEXT", f"the view's name (default: {NAME})"),
        Argument("to", "FILE", "write what would be sent into a file (JSON), and send nothing"),
    ),
    word="project",
)


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for. to: None to send it."""

    entity: str
    project: str
    name: str
    to: Path | None


def read_arguments(arguments: list[str]) -> Wanted:
    """What a command line means. Raises UserError for what is missing or mistyped, and without the extra."""
    values = COMMAND.read(arguments).values
    entity, _, project = values["project"].rpartition("/")
    if not (entity and project) or "/" in entity:
        raise UserError(f"project={values['project']} must be ENTITY/PROJECT, such as my-team/limoe")
    check_extra("wandb_workspaces", "dashboard", "the dashboard needs wandb-workspaces")
    return Wanted(entity, project, values.get("name", NAME), user_path(values["to"], "to") if "to" in values else None)


def workspace(wanted: Wanted) -> Any:
    """The workspace, not yet sent: wandb_workspaces' own object."""
    import wandb_workspaces.workspaces as ws  # an extra

    sections = [_section(section, "step") for section in SECTIONS] + [_section(SYSTEM, "RelativeTime(Wall)")]
    settings = ws.WorkspaceSettings(x_axis="step", sort_panels_alphabetically=False)
    return ws.Workspace(entity=wanted.entity, project=wanted.project, name=wanted.name, sections=sections, settings=settings)


def _section(section: Section, axis: str) -> Any:
    import wandb_workspaces.workspaces as ws

    rows = -(-len(section.panels) // COLUMNS)
    return ws.Section(
        name=section.name,
        panels=[_panel(panel, axis, place) for place, panel in enumerate(section.panels)],
        is_open=section.is_open,
        layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=rows),
        panel_settings=ws.SectionPanelSettings(x_axis=axis),
    )


def _panel(panel: Panel, axis: str, place: int) -> Any:
    import wandb_workspaces.reports.v2 as wr

    column, row = place % COLUMNS, place // COLUMNS
    layout = wr.Layout(x=8 * column, y=6 * row, w=8, h=6)
    return wr.LinePlot(title=panel.title, x=axis, metric_regex=f"^{panel.metrics}$", layout=layout)


def as_sent(made: Any) -> str:
    """What W&B would get, as JSON."""
    view = made._to_model()  # what its own save() sends; there is no public way to see it
    return json.dumps(view.model_dump(by_alias=True, exclude_none=True, mode="json"), indent=2) + "\n"


def send(made: Any) -> str:
    """Save the workspace in W&B; its address. Raises UserError if W&B does not take it."""
    quiet_settings()
    try:
        made.save()
        return str(made.url)
    except Exception as problem:  # wandb's own errors, requests' and more
        if isinstance(problem, wandb.errors.AuthenticationError) or "API key" in str(problem):
            raise UserError("you are not logged in to W&B here: run `wandb login`, or use to=FILE") from problem
        raise UserError(
            f"W&B did not take the workspace ({reason(problem)}): check the project's name and your rights, or use to=FILE"
        ) from problem


def main() -> None:
    """Read the command line, and send or write the workspace."""
    try:
        wanted = read_arguments(sys.argv[1:])
        made = workspace(wanted)
        if wanted.to is None:
            done = f"made {send(made)}"
        else:
            try:
                write_whole(wanted.to, as_sent(made).encode())
            except OSError as problem:
                raise UserError(f"cannot write {wanted.to} ({reason(problem)}): choose another to=") from problem
            done = f"wrote {wanted.to}"
        with reader_may_leave():
            print(done)
    except UserError as problem:
        exit_with(problem)


if __name__ == "__main__":
    main()
