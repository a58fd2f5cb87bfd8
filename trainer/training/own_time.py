"""The seconds of a step that are a rank's own: all ranks' steps take equally long, because they wait for the slowest one.

    data_seconds      waiting for the loader
    compute_seconds   the forward pass up to the first exchange with other ranks: the whole pass if experts are not spread
                      over ranks, else what comes before the first block with experts

Nothing is a rank's own after that: in every collective it also waits for whoever is late. With ZeRO-3 the forward pass begins
with one, so only data_seconds is left.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from model.block import Block
from model.experts import ExpertLayer
from model.limoe import LIMoE
from trainer.config.schema import ParallelConfig
from trainer.reporting.alerts import RANKS


class OwnTime:
    """Measures this rank's own seconds, as means over the steps since they were last told. The device is not waited for."""

    def __init__(self, parallel: ParallelConfig, model: LIMoE, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._computes_alone = parallel.zero_stage < 3
        self._begun: float | torch.cuda.Event | None = None
        self._spans: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self.forget()
        if parallel.expert_parallel > 1:
            blocks = [module for module in model.modules() if isinstance(module, Block)]
            first = next(block for block in blocks if isinstance(block.mlp, ExpertLayer))
            first.register_forward_pre_hook(lambda *_: self._end())  # at the block: what is in it may be compiled

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around each forward pass of a step."""
        self._begun = self._now() if self._computes_alone else None
        yield
        self._end()

    def step_is_done(self, data_seconds: float) -> None:
        """Count a step that waited this long for the loader."""
        self._steps += 1
        self._sums["data_seconds"] += data_seconds
        if self._computes_alone:
            self._sums["compute_seconds"] += sum(_seconds(*span) for span in self._spans)
        self._spans.clear()

    def means(self) -> dict[str, float]:
        """Seconds of a step by what they were spent on; the same names on every rank."""
        return {name: total / self._steps for name, total in self._sums.items()}

    def forget(self) -> None:
        """Begin anew."""
        self._steps = 0
        self._sums = dict.fromkeys(("data_seconds", "compute_seconds") if self._computes_alone else ("data_seconds",), 0.0)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end(self) -> None:
        """The first time after `computing` began counts."""
        if self._begun is not None:
            self._spans.append((self._begun, self._now()))
            self._begun = None


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]  # both are
    end.synchronize()  # the device passed this point in the forward pass; it still has the backward pass to do
    return start.elapsed_time(end) / 1000


def straggler_metrics(own_seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Smallest and largest of the ranks' own seconds, and whose the largest are; nothing for a single rank."""
    metrics = {}
    for name, by_rank in own_seconds.items():
        if len(by_rank) > 1:
            worst = max(range(len(by_rank)), key=by_rank.__getitem__)
            metrics[f"{RANKS}/{name}/min"] = min(by_rank)
            metrics[f"{RANKS}/{name}/max"] = by_rank[worst]
            metrics[f"{RANKS}/{name}/worst_rank"] = float(worst)
    return metrics
