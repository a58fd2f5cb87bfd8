"""The exponential moving average of the weights. After each applied step: average = ema * average + (1 - ema) * weights.

Each rank averages the pieces of the float32 weights that ZeRO gave it, so a step needs no communication and the ranks
together keep one copy. The average is in the optimizer's state next to Adam's moments, where DeepSpeed's accessors read it.
"""

import logging
from typing import Any

import torch

from trainer.config.schema import TrainConfig
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, SavedTensors, masters, prepare_optimizer_state, set_kind

MOST_OF_FIRST = 0.1
"""Share of the first weights in the last average that is worth a warning: they are random."""

_log = logging.getLogger(__name__)


@torch.no_grad()
def start_ema(engine: Any, train: TrainConfig, state: SavedTensors | None, step: int, processes: Processes) -> None:
    """Start the average, if one is wanted: from that of a checkpoint's state, or else from the current weights.

    step: how many are done; state: None for a new run. The engine must have its weights already.
    """
    if train.ema is None:
        return
    prepare_optimizer_state(engine)
    optimizer = engine.optimizer
    for master in masters(optimizer):
        optimizer.optimizer.state[master][EMA] = master.detach().clone()
    prepare_optimizer_state(engine)  # again, now that there is one more to link
    if state is not None and EMA in state.kinds:
        set_kind(engine, state, EMA)
    elif processes.is_first:
        _tell_start(train.ema, step, train.steps)


def _tell_start(decay: float, step: int, steps: int) -> None:
    if step:
        _log.warning("train.ema=%s: the checkpoint has no average, so it starts from the weights of step %d", decay, step)
    to_come = max(1, steps - step)
    first = decay**to_come
    if first > MOST_OF_FIRST:
        _log.warning(
            "train.ema=%s is too slow for %d steps: %.0f%% of the average will be the weights of step %d; %.6g would leave 1%%",
            *(decay, to_come, 100 * first, step, 0.01 ** (1 / to_come)),
        )


@torch.no_grad()
def update_ema(engine: Any, decay: float) -> None:
    """Move the average towards the weights after an applied step."""
    optimizer = engine.optimizer
    for master in masters(optimizer):
        optimizer.optimizer.state[master][EMA].lerp_(master.detach(), 1 - decay)
