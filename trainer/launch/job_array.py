"""The runs of a job array: a file with a JSON list of overrides a line, of which each task takes its own by `@FILE`.

So nothing is quoted for a shell on its way through sbatch, and every task is the same command.
"""

import json
from pathlib import Path

from trainer.distributed.environment import array_task_from_environment
from trainer.errors import UserError


def write_runs(path: Path, runs: list[list[str]]) -> None:
    """Write the overrides of each run, in the order of the array's tasks."""
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))


def read_array_line(arguments: list[str]) -> list[str]:
    """A command line in which `@FILE` has become the overrides that the file holds for this task of a job array."""
    expanded = []
    for argument in arguments:
        expanded += _line_of(Path(argument[1:])) if argument.startswith("@") else [argument]
    return expanded


def _line_of(path: Path) -> list[str]:
    task = array_task_from_environment()
    if task is None:
        raise UserError(
            f"@{path} holds the runs of a SLURM job array, and this is no task of one: sbatch --array=INDEX says which"
        )
    try:
        lines = path.read_text().splitlines()
        overrides = json.loads(lines[task])
    except IndexError:
        raise UserError(
            f"@{path} holds {len(lines)} runs, numbered from 0: there is none for task {task} of the job array"
        ) from None
    except (OSError, ValueError) as problem:
        raise UserError(f"@{path} cannot be read ({problem}): it should hold a JSON list of overrides a line") from problem
    return [str(override) for override in overrides]
