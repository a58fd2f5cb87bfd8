"""Evaluate a trained run: `python -m trainer.evaluate run=DIR [weights=ema] [overrides]`, alone, under torchrun, or under srun.

`run` is a run directory or one of its checkpoints; `weights=ema` evaluates the moving average of the weights (train.ema).
Overrides such as `eval.zeroshot=PATH` or `parallel.expert_parallel=2` apply to the run's own configuration.
"""

import sys
from pathlib import Path

from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.identity import check_identity, warn_of_other_pictures
from trainer.checkpoint.load import (
    WEIGHTS_ARGUMENT,
    check_sound,
    check_weights,
    checkpoint_of,
    load_state,
    read_progress,
    reading,
    take_newest,
)
from trainer.config.arguments import Argument, Command
from trainer.config.schema import Config
from trainer.config.stored import stored_config
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.engine.state import EMA, WEIGHTS
from trainer.errors import UserError

COMMAND = Command(
    "trainer.evaluate",
    "Evaluate a trained run, alone, under torchrun, or under srun: zero-shot and few-shot classification, and retrieval, "
    "as a table.",
    (
        Argument("run", "DIR", "a run directory (its newest complete checkpoint), or a checkpoint of one", required=True),
        WEIGHTS_ARGUMENT,
    ),
    overrides="set a key of the run's own configuration for this evaluation, such as eval.zeroshot=PATH or eval.batch_size=64",
    word="run",
)


def read_arguments(arguments: list[str]) -> tuple[Path, str, Config]:
    """The checkpoint, the kind of weights and the configuration that a command line means.

    Raises UserError for what is missing or mistyped, and for keys that would turn the weights into another model.
    """
    given = COMMAND.read(arguments)
    checkpoint = checkpoint_of(given.values["run"])
    with reading(checkpoint):
        kind = check_weights(given.values.get("weights", WEIGHTS), checkpoint)
        config = stored_config(checkpoint / CONFIG, given.overrides)
    check_identity(checkpoint, config, "evaluate a run that was trained this way")
    # A run trained on many processes is evaluated on however many there are now.
    if not any(override.startswith("parallel.expert_parallel=") for override in given.overrides):
        config.parallel.expert_parallel = 1
    return checkpoint, kind, config


def evaluate_run(checkpoint: Path, kind: str, config: Config, processes: Processes) -> int:
    """Evaluate the weights of one checkpoint on all ranks together; rank 0 prints the table."""
    from model.limoe import LIMoE
    from trainer.config.checks import check_evaluation
    from trainer.data.sources import load_tokenizer
    from trainer.distributed.device import dtype_of
    from trainer.engine.build import start_deepspeed
    from trainer.engine.state import ExpertSharding, set_weights
    from trainer.evaluation.encoder import ModelEncoder
    from trainer.evaluation.suite import evaluate, summary_rows
    from trainer.reporting.tables import summary_table
    from trainer.training.inputs import locate_data

    check_evaluation(config, processes.world)
    check_sound(checkpoint, processes)
    if processes.is_first:
        warn_of_other_pictures(checkpoint, config)
    with reading(checkpoint, processes=processes):
        tokenizer, step = load_tokenizer(config, checkpoint / TOKENIZER), read_progress(checkpoint).step
    located = locate_data(config, processes)
    peers = start_deepspeed(processes, config.parallel.expert_parallel)
    model = LIMoE(config.model, config.router, peers)
    sharding = ExpertSharding(processes, config.parallel.expert_parallel)
    set_weights(model, load_state(checkpoint, model, sharding, (kind,)), kind)
    dtype = dtype_of(config.train.precision)
    model.to(processes.device, dtype).eval()
    metrics = evaluate(located, ModelEncoder(model, config.data, dtype), tokenizer, processes)
    if processes.is_first:
        name = f"{config.run.name}, step {step}" + (", moving average of the weights" if kind == EMA else "")
        summary_table(name, summary_rows(metrics), [("checkpoint", str(checkpoint))])
    return 0


def main() -> None:
    """Read the command line and evaluate."""
    arguments = sys.argv[1:]
    try:
        _, _, config = take_newest(lambda: read_arguments(arguments), lambda asked: asked)
    except UserError as problem:
        exit_with(problem)
    # Chosen again, by rank 0 for all: each rank has looked at a different time, while the run may be training.

    def work(processes: Processes) -> int:
        return take_newest(lambda: read_arguments(arguments), lambda asked: evaluate_run(*asked, processes), processes)

    run_program(config, work)


if __name__ == "__main__":
    main()
