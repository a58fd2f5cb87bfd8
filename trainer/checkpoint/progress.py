"""What a run needs besides its tensors to resume."""

from dataclasses import dataclass, field
from typing import Any

from trainer.data.order.progress import DataProgress


@dataclass
class TrainingProgress:
    """What a resume needs besides tensors."""

    step: int = 0
    """Optimizer steps done, including skipped ones; the schedule and the data continue from here."""
    optimizer_steps: int = 0
    """Steps that the optimizer applied."""
    trained_since: dict[str, int] = field(default_factory=dict)
    """By name, the parameters that a resume has unfrozen, and how many steps the optimizer had applied then."""
    skipped_steps: int = 0
    """Steps left out because the loss or the gradient was not finite."""
    nonfinite_in_a_row: int = 0
    """Steps in a row, up to this one, whose loss or gradient was not finite; 0 after a finite step."""
    seed: int = 0
    pairs: int = 0
    """Pairs drawn from the training data, over all ranks: batches may have another size after a resume."""
    streams: int | None = None
    """Canonical streams that the data was dealt from: their number decides its order, so a resume keeps it."""
    mixture: list[dict[str, Any]] = field(default_factory=list)
    """The shares of the sources since the run began, as trainer.data.order.mixture.Phase; empty: a single one without a name."""
    best: float | None = None
    """The best value of `checkpoint.best` so far."""
    best_step: int | None = None
    """The step that had it; `checkpoints/best` points there as soon as the next checkpoint is complete."""
    evaluation_due: bool = False
    """Whether this step should have been evaluated, but the run was asked to stop first."""
    data: DataProgress = field(default_factory=DataProgress)
    """Counters of the data and the lengths of its shards, over all ranks."""
