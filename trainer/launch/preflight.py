"""What a run would be, worked out in seconds and without leaving a trace: `python -m trainer.train … run.dry=true`.

For use before a job waits in a queue: for the allocation around this process, for WORLD_SIZE processes, or for one.
"""

import math
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from model.limoe import LIMoE
from trainer.checkpoint.files import TOKENIZER, complete_checkpoints
from trainer.checkpoint.load import check_architecture, read_progress
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.start import Start
from trainer.config.checks import layout_problems
from trainer.config.schema import Config
from trainer.data.loader import check_reading
from trainer.data.shapes.write import RECIPES, TRAIN_SHARDS, shapes_folder
from trainer.data.sources import Shards, all_shards, check_training_data, fitting, with_shapes
from trainer.data.tokenizer import Tokenizer, given_tokenizer
from trainer.distributed.device import choose_device, gpu_memory_gib
from trainer.distributed.environment import (
    in_allocation,
    rank_from_environment,
    seconds_to_leave_from_environment,
    world_from_environment,
)
from trainer.distributed.processes import ALONE
from trainer.distributed.program import EXIT_USER_ERROR
from trainer.distributed.watchdog import check_time_to_leave
from trainer.engine.rates import rate_factors
from trainer.engine.state import WEIGHTS, named_tensors
from trainer.errors import UserError
from trainer.estimate.memory import checkpoint_bytes, estimate_memory, local_pairs, readable_bytes
from trainer.estimate.remedy import find_remedy, needed_bytes
from trainer.estimate.rows import batch_rows, frozen_rows, loss_rows, memory_rows, sent_rows
from trainer.evaluation.benchmark import benchmark_sets
from trainer.evaluation.fewshot_set import fewshot_sets
from trainer.evaluation.suite import classification_sets, retrieval_key, retrieval_shards
from trainer.reporting.log_lines import log_to_terminal
from trainer.reporting.tables import facts_table
from trainer.reporting.wandb_login import check_login
from trainer.training.directory import existing_part, inspect_run_directory
from trainer.training.inputs import evaluation_checks, source_rows

T = TypeVar("T")


@dataclass
class Findings:
    """What is known of a run before it starts.

    rows: (what, value) for the table; problems: a line for each thing that would end it; run_dir: where it would write;
    disk: bytes that its new checkpoints will need there.
    """

    run_dir: Path
    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    disk: int = 0

    def attempt(self, check: Callable[[], T]) -> T | None:
        """The result of a check; None if it raises UserError, whose line then joins the problems."""
        try:
            return check()
        except UserError as problem:
            if str(problem) not in self.problems:
                self.problems.append(str(problem))
            return None

    def add(self, what: str, value: str) -> None:
        """Add a row to the table."""
        self.rows.append((what, value))


def dry_run(config: Config) -> int:
    """Check everything that can be checked before the start, and print a table of the run, or all problems; the exit code."""
    if rank_from_environment() > 0:
        return 0
    log_to_terminal(rank=0)
    try:
        world = world_from_environment()
        found = examine(config, world or 1)
    except UserError as problem:
        return print_problems([str(problem)])
    problems = [*found.problems, *space_problems([found])]
    if problems:
        code = print_problems(problems)
        if world is None:
            print("checked for one process; to check for N, put WORLD_SIZE=N before the command", file=sys.stderr, flush=True)
        return code
    facts_table(found.rows, f"{config.run.name}: ready to run")
    return 0


def print_problems(problems: Iterable[str]) -> int:
    """Print an error line for each; returns the exit code for them."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def examine(config: Config, world: int) -> Findings:
    """Check everything that a run on `world` processes needs. Starts nothing and writes nothing."""
    found = Findings(Path(config.run.dir))
    wrong = layout_problems(config, world)
    found.problems += wrong.values()
    fits = not wrong
    if "parallel.lost_after_seconds" not in wrong:
        found.attempt(lambda: check_time_to_leave(config.parallel.lost_after_seconds, seconds_to_leave_from_environment()))
    progress, weights, start = _look_at_directory(config, found)
    if start and fits and not start.is_as_it_was:
        found.rows += [(f"  {what}", value) for what, value in start.rows()]
    ep = config.parallel.expert_parallel
    found.add("processes", f"{world}, with the experts spread over groups of {ep}" if ep > 1 else str(world))
    shards = None
    if "data.kind" not in wrong:
        shards = _look_at_data(config, world if fits else None, progress, found)
    _look_at_tokenizer(config, progress, weights, start, found)
    if "log.wandb" not in wrong:
        found.add("Weights & Biases", found.attempt(partial(check_login, config.log.wandb)) or "")
    frozen = found.attempt(partial(frozen_rows, config)) if fits else None
    if fits:
        _look_at_architecture(config, weights, start, found)
        found.attempt(partial(_check_rates, config))
    if frozen is not None:  # what is trained is known, and so is what it needs
        found.rows += frozen
        _look_at_disk(config, found)
        found.rows += batch_rows(config, world)
        found.rows += loss_rows(config, world)
        found.rows += memory_rows(config, world)
        found.rows += sent_rows(config, world)
        works = partial(_check_shards, shards, world, progress) if shards else lambda config: None
        _look_at_device(config, world, works, found)
    return found


def space_problems(runs: Iterable[Findings]) -> list[str]:
    """A line for each file system without room for the checkpoints of all these runs together."""
    needed: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for run in runs:
        place = existing_part(run.run_dir)
        needed[place.stat().st_dev] += run.disk
        places.setdefault(place.stat().st_dev, run.run_dir)
    problems = []
    for device, run_dir in places.items():
        free = shutil.disk_usage(existing_part(run_dir)).free
        if needed[device] > free:
            problems.append(
                f"checkpoints need {readable_bytes(needed[device])} (those kept by checkpoint.keep, keep_every and best, plus "
                f"one while it is written), but only {readable_bytes(free)} are free in {run_dir}: make room, keep fewer, or "
                f"choose another run.dir"
            )
    return problems


def sweep_problems(own: list[list[str]], found: list[Findings]) -> list[str]:
    """The lines of all runs (those of single runs with what distinguishes them), and the lack of space for all of them."""
    met_by: dict[str, list[int]] = {}
    for index, run in enumerate(found):
        for problem in run.problems:
            met_by.setdefault(problem, []).append(index)
    lines = []
    for problem, indices in met_by.items():
        if len(indices) == len(found):
            lines.append(problem)
        else:
            lines += [f"run {index} ({' '.join(own[index])}): {problem}" for index in indices]
    return lines + space_problems(found)


def _look_at_directory(config: Config, found: Findings) -> tuple[TrainingProgress, Path | None, Start | None]:
    """Where the run would start, the checkpoint, if any, whose weights it would start with, and how, if it does not resume."""
    found.add("run directory", str(found.run_dir))
    checkpoint, initial = found.attempt(partial(inspect_run_directory, config, ALONE)) or (None, None)
    progress = found.attempt(partial(read_progress, checkpoint)) if checkpoint else None
    if progress is None:
        found.add("run", f"new, {config.train.steps} steps" + (f", with the weights of {initial.checkpoint}" if initial else ""))
        return TrainingProgress(), initial.checkpoint if initial else None, initial
    left = max(0, config.train.steps - progress.step)
    found.add("run", f"continues from step {progress.step}, {left or 'no'} steps left")
    return progress, checkpoint, None


def _look_at_data(config: Config, world: int | None, progress: TrainingProgress, found: Findings) -> int | None:
    """The number of shards of the source that has most, if all are sound.

    world: None if the layout is wrong, so that it is unknown who would read what.
    """
    before = len(found.problems)
    written = ""
    if config.data.kind in RECIPES:
        folder = shapes_folder(config.data, config.model.image_size)
        if folder.is_dir():
            config = with_shapes(config, folder)
        else:
            found.attempt(partial(_check_writable, folder, f"data.cache={config.data.cache}"))
            written = f", to be written into {folder}"
    shards, training = TRAIN_SHARDS, None
    if not written or config.data.train is not None:
        training = found.attempt(partial(check_training_data, config))
        shards = max(len(source.source.shards) for source in training) if training else 0
    checks = found.attempt(partial(evaluation_checks, config, all_shards(training or []))) or []
    evaluation = [found.attempt(check) for check in checks]
    if shards and world:
        found.attempt(partial(_check_shards, shards, world, progress, config))
    mixture_rows = found.attempt(partial(source_rows, config, training, progress)) if training else []
    if len(found.problems) > before:
        return None
    readers = f"{max(1, config.data.workers)} reader{'s' if config.data.workers > 1 else ''} per process"
    count = sum(len(source.source.shards) for source in training) if training else shards
    found.add("training data", f"{count} shards, {readers}{written}")
    for source in training or []:
        found.add(f"  {source.options.what}", source.shards.told())
    for row in mixture_rows or []:
        found.add(*row)
    found.add("evaluation data", "from the same data set" if written else _evaluation(config, evaluation))
    for shown in evaluation:
        if shown is not None:
            found.add(f"  {shown.what}", shown.told())
    return shards


def _check_writable(folder: Path, asked: str) -> None:
    """Raise UserError where a folder cannot be made."""
    place = existing_part(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "not a folder" if not place.is_dir() else "not for us to write"
        raise UserError(f"{asked}: the embedded data set cannot be written there ({place} is {why}): choose another data.cache")


def _check_shards(shards: int, world: int, progress: TrainingProgress, config: Config) -> None:
    """Raise UserError when the processes cannot share the shards and the batch."""
    data = replace(config.data, streams=config.data.streams or progress.streams)
    check_reading(data, shards, config.train.batch_size // config.train.accumulate, world)


def _evaluation(config: Config, found: Sequence[Shards | None]) -> str:
    """`zero-shot (default, unseen), few-shot (default), suite (pets, food), retrieval on 4 shards`"""
    sets = {
        "zero-shot": list(classification_sets(config.eval.zeroshot)),
        "few-shot": list(fewshot_sets(config.eval.fewshot)),
        "suite": [benchmark.name for benchmark in benchmark_sets(config.eval.suite)],
    }
    parts = [f"{kind} ({', '.join(names)})" for kind, names in sets.items() if names]
    if retrieval_shards(config) is not None:
        shards = sum(len(shown.names) for shown in found if shown and shown.what == retrieval_key(config))
        parts.append(f"retrieval on {shards} shards")
    elif config.eval.retrieval is True:
        parts.append("no retrieval, because data.val is not set")
    return ", ".join(parts) or "none"


def _look_at_tokenizer(
    config: Config, progress: TrainingProgress, weights: Path | None, start: Start | None, found: Findings
) -> None:
    """A resume keeps its checkpoint's tokenizer; a new run takes data.tokenizer, or that of the weights it starts with."""
    given = config.data.tokenizer if progress.step == 0 else None
    outside = start if start and start.outside and not given else None
    if outside:
        where = str(outside.checkpoint)
    elif given or weights:
        where = given or str(Path(weights or "") / TOKENIZER)
    else:
        found.add("tokenizer", "to be trained on the training captions")
        return

    def look() -> Tokenizer:
        return fitting(Tokenizer(outside.tokenizer()) if outside else given_tokenizer(where), config, where)

    tokenizer = found.attempt(look)
    if tokenizer:
        found.add("tokenizer", f"{where}, {tokenizer.vocabulary} pieces")


def _check_rates(config: Config) -> None:
    """Raise UserError when optim.lr_factors names no parameter."""
    rate_factors(LIMoE.without_values(config.model, config.router), config.optim)


def _look_at_architecture(config: Config, weights: Path | None, start: Start | None, found: Findings) -> None:
    if weights is None or (start and start.outside):
        return
    model = start.unfilled() if start else LIMoE.without_values(config.model, config.router)
    wanted = {f"{WEIGHTS}/{name}": tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    found.attempt(partial(check_architecture, weights, wanted, prefix=f"{WEIGHTS}/"))


def _look_at_disk(config: Config, found: Findings) -> None:
    """While a checkpoint is written, there is one more than are kept, besides the best and those that are kept for good.

    Not counted: one that is written while steps are not finite, which few runs ever do and which ends none without a line.
    """
    size, options = checkpoint_bytes(config), config.checkpoint
    for_good = config.train.steps // math.lcm(options.keep_every, options.every_steps or 1) if options.keep_every else 0
    at_most = options.keep + (options.best is not None) + for_good
    try:
        kept = len(complete_checkpoints(found.run_dir))
    except OSError:  # reported by _look_at_directory
        kept = 0
    found.disk = size * max(1, at_most + 1 - kept)
    free = shutil.disk_usage(existing_part(found.run_dir)).free
    found.add("checkpoints", f"{at_most} of {readable_bytes(size)}; {readable_bytes(free)} free")


def _look_at_device(config: Config, world: int, works: Callable[[Config], None], found: Findings) -> None:
    """A GPU that is missing here may be in the allocation that a job waits for; inside an allocation it must be here."""
    told = config.run.gpu_memory_gib
    has = found.attempt(lambda: gpu_memory_gib(told) * 2**30) if told is not None else None
    if config.run.device != "cpu" and not torch.cuda.is_available() and not in_allocation():
        if has:
            found.add("device", f"cuda (none on this machine; {readable_bytes(has)} according to run.gpu_memory_gib)")
            _look_at_memory(config, world, has, works, found)
            return
        if config.run.device == "cuda":
            found.add("device", "cuda (none on this machine; run.gpu_memory_gib=80 checks whether the run fits)")
            return
    device = found.attempt(partial(choose_device, config.run.device, 0))
    if device is None or device.type != "cuda":
        found.add("device", "cpu")
        return
    has = has or torch.cuda.get_device_properties(device).total_memory
    found.add("device", f"{torch.cuda.get_device_name(device)} with {readable_bytes(has)}")
    _look_at_memory(config, world, has, works, found)


def _look_at_memory(config: Config, world: int, has: float, works: Callable[[Config], None], found: Findings) -> None:
    """Refuse what does not fit, and name a change that does."""
    needed = needed_bytes(config, world)
    if needed <= has:
        return
    memory = estimate_memory(config, world)
    remedy = find_remedy(config, world, has, works)
    if remedy is None:
        advice = "no other layout of these processes fits either: use more processes, or a smaller model"
    else:
        advice = f"add {' '.join(remedy.overrides)}, which needs about {readable_bytes(remedy.bytes)}"
        if config.train.negatives == "micro" and any(o.startswith("train.accumulate=") for o in remedy.overrides):
            advice += " (each micro-batch is then a separate contrastive batch; train.negatives=batch would keep it whole)"
    found.problems.append(
        f"a process needs about {readable_bytes(needed)} ({readable_bytes(memory.state)} of weights, gradients and optimizer, "
        f"{readable_bytes(memory.activations)} of activations for {local_pairs(config, world)} pairs, and CUDA itself), "
        f"but its GPU has {readable_bytes(has)}: {advice}"
    )
