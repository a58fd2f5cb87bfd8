"""Train a model: `python -m trainer.train [overrides]`, alone, under torchrun, or under srun."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.launch.hydra_app import run_app
from trainer.launch.job_array import read_array_line

if TYPE_CHECKING:
    from trainer.distributed.processes import Processes

# PyTorch and DeepSpeed take seconds to import: not for --help, and not before the configuration is checked.


def train(config: Config, processes: "Processes") -> int:
    """A whole training run in this process; returns its exit code. A run that comes to its end leaves a page about itself."""
    from trainer.report.expert_page import draw_experts
    from trainer.training import run

    code = run.train(config, processes, draw_experts)
    if code == 0 and config.log.report and processes.is_first:
        from trainer.report.html.write import write_after_training

        write_after_training(Path(config.run.dir))
    return code


def run_or_check(config: Config) -> NoReturn:
    """Train, or with run.dry=true only check the run; then exit with the right code."""
    if config.run.dry:
        from trainer.launch.preflight import dry_run

        sys.exit(dry_run(config))
    from trainer.distributed.program import run_program

    run_program(config, lambda processes: train(config, processes))


def main() -> None:
    """What a user types: one run, a sweep, or one of Hydra's flags."""
    try:
        sys.exit(run_app(read_array_line(sys.argv[1:]), run_or_check))
    except UserError as problem:
        from trainer.distributed.program import exit_with

        exit_with(problem)


if __name__ == "__main__":
    main()
