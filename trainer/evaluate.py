"""Evaluate a trained run: `python -m trainer.evaluate run=DIR [weights=ema] [overrides]`, alone, under torchrun, or under srun.

`run` is a run directory, one of its checkpoints, or an export, also `hf://OWNER/NAME`; `weights=ema` evaluates the moving average
of a run's weights (train.ema). Overrides such as `eval.zeroshot=PATH` or `parallel.expert_parallel=2` apply to the run's own
configuration. With `open_clip=NAME:WEIGHTS` instead of `run`, the same code judges a model of open_clip.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from model.hub import local_folder
from model.paths import user_path
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
from trainer.checkpoint.trained import check_export, is_export_alone, origin_of
from trainer.config.arguments import Argument, Command, Given
from trainer.config.schema import Config
from trainer.config.stored import exported_config, stored_config, with_overrides
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.engine.state import EMA, WEIGHTS
from trainer.errors import UserError, reason
from trainer.files import write_whole

if TYPE_CHECKING:
    from trainer.evaluation.suite import Memory

OURS = ("model.", "router.", "parallel.expert_parallel", "parallel.zero_stage", "data.tokenizer", "data.mean", "data.std")
"""Keys that mean nothing to a model of open_clip."""
COMMAND = Command(
    "trainer.evaluate",
    "Evaluate a trained run, alone, under torchrun, or under srun: zero-shot and few-shot classification, and retrieval, "
    "as a table.",
    (
        Argument(
            "run",
            "DIR",
            "a run directory (its newest complete checkpoint), a checkpoint of one, or an export, also hf://OWNER/NAME",
        ),
        WEIGHTS_ARGUMENT,
        Argument(
            "open_clip",
            "NAME:WEIGHTS",
            "instead of run: a model of open_clip, such as ViT-B-32:PATH (also a tag of open_clip, local-dir:PATH, hf-hub:NAME)",
        ),
        Argument("to", "FILE", "write all metrics and the most frequent confusions to FILE, as JSON"),
    ),
    overrides="set a key of the run's own configuration for this evaluation, such as eval.zeroshot=PATH or eval.batch_size=64",
    word="run",
)


def read_arguments(arguments: list[str]) -> tuple[Path, str, Config]:
    """The checkpoint, the kind of weights and the configuration that a command line means.

    Raises UserError for what is missing or mistyped, and for keys that would turn the weights into another model.
    """
    given = COMMAND.read(arguments)
    if "run" not in given.values:
        raise UserError(f"run=DIR is missing ({COMMAND.arguments[0].meaning}): {COMMAND.usage}")
    checkpoint = checkpoint_of(given.values["run"])
    with reading(checkpoint):
        kind = check_weights(given.values.get("weights", WEIGHTS), checkpoint)
        config = stored_config(checkpoint / CONFIG, given.overrides)
    check_identity(checkpoint, config, "evaluate a run that was trained this way")
    # A run trained on many processes is evaluated on however many there are now.
    if not any(override.startswith("parallel.expert_parallel=") for override in given.overrides):
        config.parallel.expert_parallel = 1
    return checkpoint, kind, config


def read_open_clip(given: Given) -> tuple[str, Config]:
    """The model of open_clip and the configuration that a command line means. Raises UserError for what does not go together."""
    asked = given.values["open_clip"]
    for other in ("run", "weights"):
        if other in given.values:
            raise UserError(f"{other}={given.values[other]} does not go together with open_clip={asked}: give one of them")
    for override in given.overrides:
        if override.lstrip("+~").startswith(OURS):
            raise UserError(f"'{override}': a model of open_clip brings its own; leave it out")
    values = OmegaConf.structured(Config())
    values.run.name, values.train.precision = asked, "fp32"
    return asked, with_overrides(values, given.overrides)


def evaluate_run(checkpoint: Path, kind: str, config: Config, processes: Processes, to: Path | None = None) -> int:
    """Evaluate the weights of one checkpoint on all ranks together; rank 0 prints the table."""
    from model.limoe import LIMoE
    from trainer.config.checks import check_evaluation
    from trainer.data.sources import load_tokenizer
    from trainer.distributed.device import dtype_of
    from trainer.engine.build import start_deepspeed
    from trainer.engine.state import ExpertSharding, set_weights
    from trainer.evaluation.encoder import ModelEncoder
    from trainer.evaluation.suite import Memory, evaluate
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
    memory = Memory(confusions={})
    metrics = evaluate(located, ModelEncoder(model, config.data, dtype), tokenizer, processes, memory)
    if processes.is_first:
        name = f"{config.run.name}, step {step}" + (", moving average of the weights" if kind == EMA else "")
        _tell(name, ("checkpoint", str(checkpoint)), metrics, memory, to, kind)
    return 0


def read_export(given: Given) -> tuple[Path, Config] | None:
    """The export and the configuration that a command line means, None for a run.

    Raises UserError for an export that cannot be had, and for what does not go together with one.
    """
    folder = local_folder(given.values["run"], "run")
    if not is_export_alone(folder):
        return None
    check_export(folder, given.values.get("weights", WEIGHTS), given.overrides)
    for override in given.overrides:
        if override.lstrip("+~").startswith("parallel."):
            raise UserError(f"'{override}': each process holds an export whole; leave it out")
    return folder, exported_config(folder, given.overrides)


def evaluate_export(folder: Path, asked: str, config: Config, processes: Processes, to: Path | None = None) -> int:
    """Evaluate an export on all ranks together, each of which holds it whole; rank 0 prints the table. asked: as it was typed."""
    from model.pretrained import load_pretrained
    from trainer.config.checks import JUDGED, check_evaluation
    from trainer.distributed.device import dtype_of
    from trainer.evaluation.encoder import ModelEncoder
    from trainer.evaluation.suite import Memory, evaluate
    from trainer.training.inputs import locate_data

    check_evaluation(config, processes.world, JUDGED)
    dtype = dtype_of(config.train.precision)
    loaded = load_pretrained(folder, processes.device, dtype)
    memory = Memory(confusions={})
    encoder = ModelEncoder(loaded.module, config.data, dtype)
    metrics = evaluate(locate_data(config, processes), encoder, loaded.tokenizer, processes, memory)
    if processes.is_first:
        _tell(origin_of(folder, config), ("export", asked), metrics, memory, to)
    return 0


def evaluate_open_clip(asked: str, config: Config, processes: Processes, to: Path | None = None) -> int:
    """Evaluate a model of open_clip on all ranks together, each of which holds it whole; rank 0 prints the table."""
    from trainer.config.checks import JUDGED, check_evaluation
    from trainer.distributed.device import dtype_of
    from trainer.evaluation.open_clip_model import load_open_clip
    from trainer.evaluation.suite import Memory, evaluate
    from trainer.training.inputs import locate_data

    check_evaluation(config, processes.world, JUDGED)
    found = load_open_clip(asked, processes.device, dtype_of(config.train.precision))
    config.model.image_size, config.model.text_length = found.image_size, found.text_length
    memory = Memory(confusions={})
    metrics = evaluate(locate_data(config, processes), found, found.tokenize, processes, memory, found.crop)
    if not metrics:
        raise UserError("nothing to evaluate: give eval.zeroshot=PATH, eval.suite=PATH, eval.fewshot=PATH or eval.retrieval=PATH")
    if processes.is_first:
        _tell(asked, ("open_clip", asked), metrics, memory, to)
    return 0


def _tell(
    name: str, origin: tuple[str, str], metrics: dict[str, float], memory: "Memory", to: Path | None, kind: str | None = None
) -> None:
    """Print the table, and write the file if one is asked for. kind: of the weights of a checkpoint."""
    from trainer.evaluation.suite import confusion_rows, summary_rows
    from trainer.reporting.tables import summary_table

    confusions, notes = memory.confusions or {}, [origin]
    if to is not None:
        mistaken = {group: [asdict(pair) for pair in worst] for group, worst in confusions.items()}
        weights = {"weights": kind} if kind is not None else {}
        result = {"name": name, origin[0]: origin[1], **weights, "metrics": metrics, "confusions": mistaken}
        try:
            write_whole(to, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        except OSError as problem:
            raise UserError(f"to={to} cannot be written ({reason(problem)}): choose another file") from problem
        notes.append(("metrics", str(to)))
    summary_table(name, [*summary_rows(metrics), *confusion_rows(confusions)], notes)


def _file_to_write(given: Given) -> Path | None:
    """Raises UserError now, rather than after the evaluation, when there is no such folder."""
    if "to" not in given.values:
        return None
    to = user_path(given.values["to"], "to")
    if to.is_dir() or not to.parent.is_dir():
        raise UserError(f"to={to}: give a file in a folder that exists")
    return to


def main() -> None:
    """Read the command line and evaluate."""
    arguments, export = sys.argv[1:], None
    try:
        given = COMMAND.read(arguments)
        to = _file_to_write(given)
        if "open_clip" in given.values:
            asked, config = read_open_clip(given)
        elif "run" in given.values and (export := read_export(given)) is not None:
            folder, config = export
        else:
            _, _, config = take_newest(lambda: read_arguments(arguments), lambda found: found)
    except UserError as problem:
        exit_with(problem)

    def work(processes: Processes) -> int:
        if "open_clip" in given.values:
            return evaluate_open_clip(asked, config, processes, to)
        if export is not None:
            return evaluate_export(folder, given.values["run"], config, processes, to)
        # Chosen again, by rank 0 for all: each rank has looked at a different time, while the run may be training.
        return take_newest(lambda: read_arguments(arguments), lambda found: evaluate_run(*found, processes, to), processes)

    run_program(config, work)


if __name__ == "__main__":
    main()
