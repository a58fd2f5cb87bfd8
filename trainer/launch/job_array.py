"""The runs of a job array: a file with one JSON list of overrides per line, from which each task reads its own with `@FILE`.

So nothing needs quoting for a shell on its way through sbatch, and every task runs the same command.
"""

import json
from pathlib import Path

from trainer.distributed.environment import array_task_from_environment
from trainer.errors import UserError


def write_runs(path: Path, runs: list[list[str]]) -> None:
    """Write the overrides of each run, in the order of the array's tasks."""
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))


def read_array_line(arguments: list[str]) -> list[str]:
    """A command line with `@FILE` replaced by the file's overrides for this task of a job array."""
    expanded = []
    for argument in arguments:
        expanded += _line_of(Path(argument[1:])) if argument.startswith("@") else [argument]
    return expanded


def _line_of(path: Path) -> list[str]:
    task = array_task_from_environment()
    if task is None:
        raise UserError(
            f"@{path} lists the runs of a SLURM job array, but this process is not in one: sbatch --array=INDEX chooses the run"
        )
    try:
        lines = path.read_text().splitlines()
        overrides = json.loads(lines[task])
    except IndexError:
        raise UserError(f"@{path} lists {len(lines)} runs, numbered from 0: none for task {task} of the job array") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"@{path} cannot be read ({problem}): it must contain one JSON list of overrides per line") from problem
    return [str(override) for override in overrides]
