"""What a configuration makes, without data or GPU: `python -m trainer.describe model=limoe_h14 parallel.expert_parallel=8`."""

import sys

from model.paths import user_path
from trainer.config.arguments import Argument, Command
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.config.stored import stored_config
from trainer.distributed.environment import world_from_environment
from trainer.distributed.program import exit_with
from trainer.errors import UserError
from trainer.estimate.rows import describe
from trainer.reporting.tables import facts_table

COMMAND = Command(
    "trainer.describe",
    "What a configuration makes, without data or GPU: parameters, memory, what is sent. WORLD_SIZE and LOCAL_WORLD_SIZE (a "
    "node's) before the command set the number of processes.",
    (Argument("run", "DIR", "the configuration of a run, from its directory or a checkpoint, in place of conf/config.yaml"),),
    overrides="set a key, or choose from a group, such as model=limoe_h14 or parallel.expert_parallel=8",
)


def read_arguments(arguments: list[str]) -> Config:
    """The configuration that a command line means. Raises UserError for what is mistyped, or a run that has none."""
    given = COMMAND.read(arguments)
    if "run" in given.values:
        return stored_config(user_path(given.values["run"], "run") / "config.yaml", given.overrides)
    return compose_config(given.overrides)


def main() -> None:
    """Read the command line and print the description."""
    try:
        config = read_arguments(sys.argv[1:])
        rows = describe(config, world_from_environment() or max(1, config.parallel.expert_parallel))
    except UserError as problem:
        exit_with(problem)
    facts_table(rows)


if __name__ == "__main__":
    main()
