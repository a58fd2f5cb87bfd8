"""One optimizer step, and what was measured in it."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.auxiliary import RoutingSums, routing_metrics, sum_over
from model.balance import bias_metrics, update_biases
from model.count import step_flops
from model.objective import Losses, training_losses
from model.preprocess import normalise
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.limits import check_bad_shards, check_bad_share, is_bad_share, too_many_bad_shards
from trainer.data.loader import TrainingLoader
from trainer.data.order.progress import add_counts
from trainer.distributed.device import dtype_of, memory_gib, utilisation
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.engine.ema import update_ema
from trainer.training.boundary import Boundary, Standing, agree
from trainer.training.schedule import learning_rate


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step on this rank, not yet exchanged; its tensors are still on the device."""

    losses: list[Losses]
    """Of each micro-batch."""
    routing: dict[int, RoutingSums]
    """Over all micro-batches and ranks, by expert layer."""
    scale: Tensor
    """The logit scale that the last micro-batch saw."""
    rate: float
    applied: bool
    """Whether the optimizer took the step, on all ranks or on none."""
    started: float
    """`time.perf_counter()` then."""
    data_seconds: float


@dataclass(frozen=True)
class StepReport:
    """The outcome of a step over all ranks, the same on each except for the times. Only `boundary` was read from the device."""

    step: int
    """How many are done, including this one."""
    loss: float
    seconds: float
    pairs_per_second: float
    boundary: Boundary


class Trainer:
    """Takes steps. Everything it needs is passed in; it prints and writes nothing."""

    def __init__(
        self,
        config: Config,
        engine: Any,
        loader: TrainingLoader,
        progress: TrainingProgress,
        processes: Processes,
        peers: DistributedPeers,
    ) -> None:
        self.config = config
        self.engine = engine
        self.loader = loader
        self.progress = progress
        self.processes = processes
        self.peers = peers
        self._dtype = dtype_of(config.train.precision)
        self._broken = 0  # shards, when they were last looked at
        self._flops = step_flops(config.model, config.router, config.train.batch_size)

    def step(self) -> StepOutcome:
        """Draw the next step's batch and train on it, together with the other ranks."""
        started = time.perf_counter()
        self._seed_noise()
        rate = self._set_learning_rate()
        losses, data_seconds, scale = [], 0.0, torch.zeros(())
        for _ in range(self.config.train.accumulate):
            images, texts, waited = self._next_batch()
            output = self.engine(images, texts)
            losses.append(training_losses(output, self.config.router.aux, self.config.model.routed_experts, self.peers))
            self.engine.backward(losses[-1].total)
            self.engine.step()
            data_seconds += waited
            scale = output.scale.detach()
        applied = not self.engine.optimizer.overflow
        routing = sum_over([micro.routing for micro in losses])
        if applied:
            update_biases(self.engine.module, routing)
            if self.config.train.ema is not None:
                update_ema(self.engine, self.config.train.ema)
        return StepOutcome(losses, routing, scale, rate, applied, started, data_seconds)

    def conclude(
        self, outcome: StepOutcome, stop_signal: int = 0, written: bool = False, minutes_over: bool = False
    ) -> StepReport:
        """Count the step, and agree with the other ranks on its outcome and on requests to stop or save. A collective.

        For the other arguments see `Standing`. Raises UserError when too many samples or shards were unusable.
        """
        loader = self.loader
        mine = Standing(
            contrastive=_mean([losses.contrastive for losses in outcome.losses]),
            auxiliary=_mean([losses.auxiliary for losses in outcome.losses]),
            read=loader.read,
            bad=sum(loader.bad.values()),
            shards_read=loader.shards_read,
            bad_shards=sum(loader.bad_shards.values()),
            truncated=loader.truncated,
            stop_signal=stop_signal,
            written=written,
            minutes_over=minutes_over,
        )
        boundary = agree(mine, self.processes)
        if is_bad_share(boundary.read, boundary.bad, self.config.data.max_bad_share):
            self._refuse_bad(boundary.read)
        self._judge_shards(boundary.shards_read, boundary.bad_shards)
        loss = boundary.contrastive + boundary.auxiliary
        self._count(outcome.applied, math.isfinite(loss))
        seconds = time.perf_counter() - outcome.started
        return StepReport(self.progress.step, loss, seconds, self.config.train.batch_size / seconds, boundary)

    def measure(self, outcome: StepOutcome, report: StepReport) -> dict[str, float]:
        """All metrics of a step that was just concluded. It waits for the device: only for steps that are recorded."""
        tensors = (
            _parts(outcome.losses)
            | routing_metrics(outcome.routing)
            | {"train/logit_scale": outcome.scale}
            | bias_metrics(self.engine.module)
        )
        values = dict(zip(tensors, torch.stack([value.double() for value in tensors.values()]).tolist(), strict=True))
        losses = {
            "train/loss": report.loss,
            "train/loss_contrastive": report.boundary.contrastive,
            "train/loss_aux": report.boundary.auxiliary,
        }
        return losses | values | self._counts(outcome, report.boundary) | self._performance(outcome, report)

    def _seed_noise(self) -> None:
        """Depends only on seed, step and rank, so that a resumed run draws what the uninterrupted one would."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.progress.step) * self.processes.world + self.processes.rank)

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.config.schedule, self.config.optim.lr, self.progress.step, self.config.train.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        return rate

    def _next_batch(self) -> tuple[Tensor, Tensor, float]:
        """Normalised images, tokens, and the seconds spent waiting for them."""
        started = time.perf_counter()
        batch = next(self.loader)
        waited = time.perf_counter() - started
        self.progress.pairs += self.config.train.batch_size // self.config.train.accumulate
        data, device = self.config.data, self.processes.device
        images = normalise(batch.images.to(device, non_blocking=True), data.mean, data.std, self._dtype)
        return images, batch.texts.to(device, non_blocking=True), waited

    def _count(self, applied: bool, finite: bool) -> None:
        progress = self.progress
        progress.step += 1
        progress.optimizer_steps += applied
        progress.skipped_steps += not applied
        progress.nonfinite_in_a_row = 0 if applied and finite else progress.nonfinite_in_a_row + 1

    def _counts(self, outcome: StepOutcome, boundary: Boundary) -> dict[str, float]:
        met = {
            "data/bad_samples": float(boundary.bad),
            "data/bad_shards": float(boundary.bad_shards),
            "data/truncated_captions": boundary.truncated / self.progress.pairs,
        }
        return {name: value for name, value in met.items() if value} | {
            "train/lr": outcome.rate,
            "train/grad_norm": float(self.engine.get_global_grad_norm()),
            "train/skipped_steps": float(self.progress.skipped_steps),
        }

    def _refuse_bad(self, read: int) -> None:
        """Name the worst shards of all ranks, which are only collected now."""
        check_bad_share(read, self._of_all_ranks(self.loader.bad), self.config.data.max_bad_share)

    def _judge_shards(self, read: int, broken: int) -> None:
        """Check which shards ended early, if there are more than before and their share is too large."""
        limit, shards = self.config.data.max_bad_shards, self.loader.shards
        if broken > self._broken and too_many_bad_shards(shards, read, broken, limit):
            check_bad_shards(shards, read, self._of_all_ranks(self.loader.bad_shards), limit)
        self._broken = broken

    def _of_all_ranks(self, counts: dict[str, int]) -> dict[str, int]:
        total: dict[str, int] = {}
        for of_rank in self.processes.gather_objects(counts):
            add_counts(total, of_rank)
        return total

    def _performance(self, outcome: StepOutcome, report: StepReport) -> dict[str, float]:
        measured = {
            "perf/step_seconds": report.seconds,
            "perf/data_seconds": outcome.data_seconds,
            "perf/pairs_per_second": report.pairs_per_second,
            "perf/memory_gib": memory_gib(self.processes.device),
        }
        mfu = utilisation(self._flops, report.seconds, self.processes.world, self.processes.device)
        return measured if mfu is None else measured | {"perf/mfu": mfu}


def _parts(micro: list[Losses]) -> dict[str, Tensor]:
    """The auxiliary losses averaged over the micro-batches of a step; scalars."""
    return {f"train/aux/{name}": _mean([losses.parts[name] for losses in micro]) for name in micro[0].parts}


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
