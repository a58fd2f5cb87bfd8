"""What makes a run fit its GPUs: a setting that passed the same estimate, not just advice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from trainer.config.checks import check_layout
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.estimate.memory import estimate_memory, logit_rows

CUDA_BYTES = 2 * 2**30
"""Most memory of a GPU that CUDA and NCCL use besides the program's tensors."""
MOST_ACCUMULATE = 64
LOSS_CHUNK = 256
"""Rows of logits at a time that are proposed where a process would have more than four times as many."""


@dataclass(frozen=True)
class Remedy:
    """overrides: what to add to the command; bytes: what a process then needs, including CUDA's own."""

    overrides: list[str]
    bytes: float


def needed_bytes(config: Config, world: int) -> float:
    """Of a GPU's memory, including CUDA's own."""
    return estimate_memory(config, world).total + CUDA_BYTES


def find_remedy(config: Config, world: int, has: float, works: Callable[[Config], None] = lambda config: None) -> Remedy | None:
    """The cheapest change with which the run fits into `has` bytes on as many processes; None when nothing found does.

    works: raises UserError for a configuration that would not run for another reason.
    """
    states: dict[tuple[int, int], float] = {}
    for changed, overrides in _candidates(config, world):
        layout = changed.parallel.expert_parallel, changed.parallel.zero_stage
        if states.get(layout, 0.0) > has:  # whatever the activations
            continue
        try:
            check_layout(changed, world)
            works(changed)
        except UserError:
            continue
        memory = estimate_memory(changed, world)
        states[layout] = memory.state + CUDA_BYTES
        if memory.total + CUDA_BYTES <= has:
            return Remedy(overrides, memory.total + CUDA_BYTES)
    return None


def _candidates(config: Config, world: int) -> Iterator[tuple[Config, list[str]]]:
    """Changed configurations, the cheapest first: fewer logits at a time, recomputing, sending more, then smaller pieces."""
    train, parallel = config.train, config.parallel
    saving = {"none": ["none", "blocks", "offload"], "blocks": ["blocks", "offload"]}.get(
        train.activation_checkpointing, ["offload"]
    )
    stages = range(parallel.zero_stage, 4)
    experts = config.model.routed_experts if config.model.expert_layers else 1
    groups = [ep for ep in range(parallel.expert_parallel, min(world, experts) + 1) if world % ep == 0 and experts % ep == 0]
    cuts = [train.accumulate * 2**n for n in range(8) if train.accumulate * 2**n <= MOST_ACCUMULATE]
    chunks = [train.loss_chunk, LOSS_CHUNK] if logit_rows(config, world) > 4 * LOSS_CHUNK else [train.loss_chunk]
    for accumulate, ep, stage, saved, chunk in product(cuts, groups, stages, saving, chunks):
        changed = replace(
            config,
            train=replace(train, activation_checkpointing=saved, accumulate=accumulate, loss_chunk=chunk),
            parallel=replace(parallel, zero_stage=stage, expert_parallel=ep),
        )
        values = {
            "train.loss_chunk": (train.loss_chunk, chunk),
            "train.activation_checkpointing": (train.activation_checkpointing, saved),
            "parallel.zero_stage": (parallel.zero_stage, stage),
            "parallel.expert_parallel": (parallel.expert_parallel, ep),
            "train.accumulate": (train.accumulate, accumulate),
        }
        yield changed, [f"{key}={now}" for key, (before, now) in values.items() if before != now]
