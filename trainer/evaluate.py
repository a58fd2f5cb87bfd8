"""Evaluate a trained run: `python -m trainer.evaluate run=DIR [weights=ema] [overrides]`, alone, under torchrun, or under srun.

`run` is a run directory or one of its checkpoints; `weights=ema` evaluates the moving average of the weights (train.ema).
Overrides such as `eval.zeroshot=PATH` or `parallel.expert_parallel=2` apply to the run's own configuration.
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.load import check_sound, check_weights, checkpoint_of, load_state, read_progress, reading, take_newest
from trainer.config.compose import GROUPS, check_key, explain, load_config, parse_overrides, to_config
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.engine.state import EMA, WEIGHTS
from trainer.errors import UserError

USAGE = "python -m trainer.evaluate run=DIR [weights=ema] [eval.zeroshot=PATH …]: DIR is a run directory or a checkpoint of one"


def read_arguments(arguments: list[str]) -> tuple[Path, str, Config]:
    """The checkpoint, the kind of weights and the configuration that a command line means.

    Raises UserError for what is missing or mistyped.
    """
    overrides = [argument for argument in arguments if not argument.startswith(("run=", "weights="))]
    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(runs) != 1:
        raise UserError(f"say which run to evaluate: {USAGE}")
    checkpoint = checkpoint_of(runs[0])
    kinds = [argument.removeprefix("weights=") for argument in arguments if argument.startswith("weights=")]
    with reading(checkpoint):
        kind = check_weights(kinds[-1] if kinds else WEIGHTS, checkpoint)
        values = load_config(checkpoint / CONFIG)
    try:
        for override in parse_overrides(overrides):
            check_key(override)
            if override.key_or_group in GROUPS or override.is_delete() or override.is_sweep_override():
                raise UserError(
                    f"'{override.input_line}': evaluation takes single keys, one value each, such as eval.zeroshot=PATH"
                )
            OmegaConf.update(values, override.key_or_group, override.value(), merge=False)
    except OmegaConfBaseException as problem:
        raise UserError(explain(problem)) from problem
    return checkpoint, kind, to_config(values)


def _asked(arguments: list[str]) -> tuple[Path, str, Config]:
    """`read_arguments`; a run trained on many processes is evaluated on however many there are now."""
    checkpoint, kind, config = read_arguments(arguments)
    if not any(argument.startswith("parallel.expert_parallel=") for argument in arguments):
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
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    arguments = sys.argv[1:]
    try:
        _, _, config = take_newest(lambda: _asked(arguments), lambda asked: asked)
    except UserError as problem:
        exit_with(problem)
    # Chosen again, by rank 0 for all: each rank has looked at another moment, and a run that trains goes on meanwhile.
    run_program(
        config,
        lambda processes: take_newest(lambda: _asked(arguments), lambda asked: evaluate_run(*asked, processes), processes),
    )


if __name__ == "__main__":
    main()
