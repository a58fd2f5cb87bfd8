"""What a configuration makes, without data or GPU: `python -m trainer.describe model=limoe_h14 parallel.expert_parallel=8`."""

import sys

from trainer.config.compose import compose_config
from trainer.distributed.environment import world_from_environment
from trainer.distributed.program import exit_with
from trainer.errors import UserError
from trainer.estimate.rows import describe
from trainer.reporting.tables import facts_table


def main() -> None:
    """Compose the configuration and print its description; WORLD_SIZE and LOCAL_WORLD_SIZE (a node's) set the processes."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    try:
        config = compose_config(sys.argv[1:])
        rows = describe(config, world_from_environment() or max(1, config.parallel.expert_parallel))
    except UserError as problem:
        exit_with(problem)
    facts_table(rows)


if __name__ == "__main__":
    main()
