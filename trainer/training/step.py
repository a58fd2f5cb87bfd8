"""One optimizer step, and what was measured in it."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.auxiliary import RoutingSums, relative_load, routing_metrics, sum_over
from model.balance import bias_metrics, update_biases
from model.count import step_flops
from model.objective import Losses
from model.preprocess import normalise
from model.regions import region
from model.stream import MODALITIES
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.limits import check_bad_shards, check_bad_share, is_bad_share, too_many_bad_shards
from trainer.data.loader import TrainingLoader
from trainer.data.order.progress import add_counts
from trainer.distributed.device import dtype_of, memory_gib, utilisation
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.engine.ema import update_ema
from trainer.reporting.loads import Loads
from trainer.training.boundary import Boundary, Standing, agree
from trainer.training.by_source import LossBySource
from trainer.training.own_time import OwnTime, straggler_metrics
from trainer.training.passes import Passes, Piece
from trainer.training.saver import due
from trainer.training.schedule import learning_rate


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step on this rank, not yet exchanged; its tensors are still on the device."""

    losses: list[Losses]
    """Of each contrastive batch: the whole, or the micro-batches if `train.negatives` says so."""
    routing: dict[int, RoutingSums]
    """Over all micro-batches and ranks, by expert layer."""
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
        self._own_time = OwnTime(config.parallel, engine.module, processes.device)
        names = loader.mixture.names
        self._by_source = LossBySource(names if len(names) > 1 else [], peers, processes.device)
        self._passes = Passes(
            engine, config, peers, self._own_time.computing, self._by_source.saw if self._by_source.names else None
        )
        self._first_step = progress.step + 1
        self._data_seconds = 0.0  # of the present step
        self._broken = 0  # shards, when they were last looked at
        self._flops = step_flops(
            config.model, config.router, config.train.batch_size, config.train.freeze, config.trained_image_tokens
        )

    def step(self) -> StepOutcome:
        """Draw the next step's batch and train on it, together with the other ranks."""
        started = time.perf_counter()
        self._by_source.begin(self.is_recorded(self.progress.step + 1))
        rate = self._set_learning_rate()
        self._data_seconds = 0.0
        losses = self._passes.backward(self._micro_batches(), self.progress.step)
        applied = not self.engine.optimizer.overflow
        routing = sum_over([batch.routing for batch in losses])
        if applied:
            update_biases(self.engine.module, routing)
            if self.config.train.ema is not None:
                update_ema(self.engine, self.config.train.ema)
        return StepOutcome(losses, routing, rate, applied, started, self._data_seconds)

    def is_recorded(self, step: int) -> bool:
        """Whether a step's metrics are recorded even if nobody asks the run to stop in it."""
        return due(step, self.config.log.every) or step in (self._first_step, self.config.train.steps)

    def conclude(
        self, outcome: StepOutcome, stop_signal: int = 0, written: bool = False, minutes_over: bool = False
    ) -> StepReport:
        """Count the step, and agree with the other ranks on its outcome and on requests to stop or save. A collective.

        For the other arguments see `Standing`. Raises UserError when too many samples or shards were unusable.
        """
        loader = self.loader
        self._own_time.step_is_done(outcome.data_seconds)
        mine = Standing(
            contrastive=_mean([losses.contrastive for losses in outcome.losses]),
            auxiliary=_mean([losses.auxiliary for losses in outcome.losses]),
            read=loader.read,
            bad=sum(loader.bad.values()),
            shards_read=loader.shards_read,
            bad_shards=sum(loader.bad_shards.values()),
            truncated=loader.truncated,
            left_out=loader.left_out,
            stop_signal=stop_signal,
            written=written,
            minutes_over=minutes_over,
            own_seconds=self._own_time.means(),
            by_source=self._by_source.sums,
        )
        with region("agree"):
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
        self._own_time.forget()  # the report has them
        tensors = (
            _parts(outcome.losses)
            | routing_metrics(outcome.routing)
            | _of_logits(outcome.losses[-1])
            | bias_metrics(self.engine.module)
        )
        values = dict(zip(tensors, torch.stack([value.double() for value in tensors.values()]).tolist(), strict=True))
        losses = {
            "train/loss": report.loss,
            "train/loss_contrastive": report.boundary.contrastive,
            "train/loss_aux": report.boundary.auxiliary,
        }
        return (
            losses
            | self._of_sources(report.boundary)
            | values
            | self._counts(outcome, report.boundary)
            | self._performance(outcome, report)
        )

    def _of_sources(self, boundary: Boundary) -> dict[str, float]:
        """Pairs of each source so far, and the mean loss of those in this step, where the run has several."""
        names, streams, pairs = self._by_source.names, self.loader.streams, self.progress.pairs
        if not names:
            return {}
        now = self.loader.mixture.drawn_by_all(streams, pairs)
        before = self.loader.mixture.drawn_by_all(streams, pairs - self.config.train.batch_size)
        found = {f"data/source/{name}/pairs": float(now[name]) for name in names}
        for name, total in zip(names, boundary.by_source, strict=True):
            count = now[name] - before.get(name, 0)
            if count and total:
                found[f"train/loss_contrastive/{name}"] = total / count
        return found

    def loads(self, outcome: StepOutcome) -> Loads:
        """The load of every expert in a step. It waits for the device, like `measure`."""
        if not outcome.routing:
            return {}
        load_lme = relative_load(torch.stack([sums.load_me for sums in outcome.routing.values()])).tolist()
        return {
            f"layer{index:02d}": dict(zip(MODALITIES, load_me, strict=True))
            for index, load_me in zip(outcome.routing, load_lme, strict=True)
        }

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.config.schedule, self.config.optim.lr, self.progress.step, self.config.train.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        return rate

    def _micro_batches(self) -> Iterator[Piece]:
        """The step's micro-batches, drawn when their turn comes."""
        for _ in range(self.config.train.accumulate):
            started = time.perf_counter()
            with region("data"):
                batch = next(self.loader)
            self._data_seconds += time.perf_counter() - started
            self.progress.pairs += self.config.train.batch_size // self.config.train.accumulate
            self._by_source.drew(batch.sources)
            pixels, texts = batch.images, batch.texts
            if self.config.train.in_pieces:  # they stay for a second pass, while the workers' shared memory may be small
                pixels, texts = (tensor.clone() if tensor.is_shared() else tensor for tensor in (pixels, texts))
            yield partial(self._on_device, pixels, texts)

    def _on_device(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images, and tokens."""
        data, device = self.config.data, self.processes.device
        images = normalise(pixels.to(device, non_blocking=True), data.mean, data.std, self._dtype)
        return images, texts.to(device, non_blocking=True)

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
            "data/left_out": boundary.left_out / boundary.read if boundary.read else 0.0,
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
        measured |= straggler_metrics(report.boundary.own_seconds)
        mfu = utilisation(self._flops, report.seconds, self.processes.world, self.processes.device)
        return measured if mfu is None else measured | {"perf/mfu": mfu}


def _parts(batches: list[Losses]) -> dict[str, Tensor]:
    """The auxiliary losses averaged over the contrastive batches of a step; scalars."""
    return {f"train/aux/{name}": _mean([losses.parts[name] for losses in batches]) for name in batches[0].parts}


def _of_logits(last: Losses) -> dict[str, Tensor]:
    """What the cosines are multiplied with, and what is added to them if anything is; scalars."""
    scale = {"train/logit_scale": last.scale}
    return scale if last.bias is None else scale | {"train/logit_bias": last.bias}


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
