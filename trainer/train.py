"""Train a model: `python -m trainer.train [overrides]`, alone, under torchrun, or under srun."""

import sys
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from trainer.config.compose import CONF, compose_config, overrides_among, quote_text, register_schema, to_config
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.errors import UserError
from trainer.launch.job_array import read_array_line
from trainer.launch.names import name_after_job, name_in_wandb
from trainer.launch.sweep import is_sweep, sweep

OWN_CONFIGURATION = ("--config-", "-cd", "-cp", "-cn")
"""Hydra's flags for a folder of the user's own; only Hydra's front end knows it, and what is wrong in it Hydra tells."""


def train(config: Config, processes: Processes) -> int:
    """A whole training run in this process; returns its exit code."""
    from trainer.training import run  # DeepSpeed takes seconds to import: not before the configuration is known to be good

    return run.train(config, processes)


def run_or_check(config: Config) -> NoReturn:
    """Train, or with run.dry=true only check that it can be done; then exit with an honest code."""
    if config.run.dry:
        from trainer.launch.preflight import dry_run

        sys.exit(dry_run(config))
    run_program(config, lambda processes: train(config, processes))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def hydra_main(values: DictConfig) -> None:
    """The way through Hydra's own front end, for its flags (--help, --cfg job, --config-dir)."""
    try:
        config = to_config(values)
        name_after_job(config, overrides_among(sys.argv[1:]))
        name_in_wandb(config, overrides_among(sys.argv[1:]))
    except UserError as problem:
        exit_with(problem)
    run_or_check(config)


def main() -> None:
    """Compose the configuration and train."""
    arguments = sys.argv[1:]
    try:
        arguments = read_array_line(arguments)
        if is_sweep(arguments):
            sys.exit(sweep(arguments))
        if not any(argument.startswith(OWN_CONFIGURATION) for argument in arguments):
            config = compose_config(overrides_among(arguments))
            name_after_job(config, overrides_among(arguments))
            name_in_wandb(config, overrides_among(arguments))
    except UserError as problem:
        exit_with(problem)
    if any(argument.startswith("-") for argument in arguments):
        overrides = overrides_among(arguments)
        # Hydra wants them in one piece, whatever flags a user types between them.
        sys.argv[1:] = [argument for argument in arguments if argument not in overrides] + list(map(quote_text, overrides))
        register_schema()
        hydra_main()
        return
    run_or_check(config)


if __name__ == "__main__":
    main()
