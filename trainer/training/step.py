"""One optimizer step, and what was measured in it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from model.auxiliary import RoutingSums, routing_metrics
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
from trainer.errors import UserError
from trainer.training.schedule import learning_rate


@dataclass
class StepReport:
    """What a step came to, the same on every rank. step: how many are done, this one counted."""

    step: int
    loss: float
    success: dict[str, float]
    stop_signal: int
    """The signal that asked some rank to stop; 0 for none."""
    all_written: bool
    """Whether every rank is done with the checkpoint that was being written."""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Takes steps. Everything it needs is given to it; it prints and writes nothing."""

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
        self._nonfinite_in_a_row = 0
        self._broken = 0  # shards, when they were last looked at
        self._flops = step_flops(config.model, config.router, config.train.batch_size)

    def step(self, stop_signal: Callable[[], int] = lambda: 0, written: Callable[[], bool] = lambda: False) -> StepReport:
        """Draw the batch of the next step, learn from it, and agree with the other ranks on what came of it. A collective.

        Asked at the end of the step: `stop_signal`, for a signal that this rank got, or 0, and `written`, for whether it is
        done with writing a checkpoint.
        Raises UserError when too many steps in a row were not finite, or too many samples unusable.
        """
        started = time.perf_counter()
        config, progress = self.config, self.progress
        # The noise depends on seed, step and rank alone, so a resumed run draws what the uninterrupted one would.
        torch.manual_seed((config.seed * 1_000_003 + progress.step) * self.processes.world + self.processes.rank)
        rate = learning_rate(config.schedule, config.optim.lr, progress.step, config.train.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        data_seconds = 0.0
        micro_losses: list[Losses] = []
        scale = torch.zeros(())
        for _ in range(config.train.accumulate):
            images, texts, waited = self._next_batch()
            data_seconds += waited
            output = self.engine(images, texts)
            losses = training_losses(output, config.router.aux, config.model.experts, self.peers)
            self.engine.backward(losses.total)
            self.engine.step()
            micro_losses.append(losses)
            scale = output.scale.detach()
        applied = not self.engine.optimizer.overflow
        if applied and config.train.ema is not None:
            update_ema(self.engine, config.train.ema)
        progress.step += 1
        progress.optimizer_steps += applied
        progress.skipped_steps += not applied
        metrics = _loss_metrics(micro_losses) | {"train/logit_scale": scale}
        report = self._agree(metrics, stop_signal(), written())
        report.seconds = time.perf_counter() - started
        report.metrics |= {
            "train/lr": rate,
            "train/grad_norm": float(self.engine.get_global_grad_norm()),
            "train/skipped_steps": float(progress.skipped_steps),
        } | self._performance(report.seconds, data_seconds)
        self._check_finite(applied and math.isfinite(report.loss))
        return report

    def _next_batch(self) -> tuple[Tensor, Tensor, float]:
        """Normalised images, tokens, and the seconds that were waited for them."""
        started = time.perf_counter()
        batch = next(self.loader)
        waited = time.perf_counter() - started
        self.progress.pairs += self.config.train.batch_size // self.config.train.accumulate
        data, device = self.config.data, self.processes.device
        images = normalise(batch.images.to(device, non_blocking=True), data.mean, data.std, self._dtype)
        return images, batch.texts.to(device, non_blocking=True), waited

    def _agree(self, metrics: dict[str, Tensor], stop_signal: int, written: bool) -> StepReport:
        """Sum over ranks what differs between them, and read everything on the host at once."""
        names, values = list(metrics), torch.stack([value.double() for value in metrics.values()])
        loader = self.loader
        counts = [loader.read, sum(loader.bad.values()), loader.shards_read, sum(loader.bad_shards.values()), loader.truncated]
        asked_for = [*map(float, counts), float(stop_signal != 0), float(written)]
        differing = torch.cat([metrics["train/loss_contrastive"].double().view(1), values.new_tensor(asked_for)])
        contrastive, read, bad, shards_read, bad_shards, truncated, stop, done = self.processes.sum(differing).tolist()
        read_out = dict(zip(names, values.tolist(), strict=True))
        read_out["train/loss_contrastive"] = contrastive / self.processes.world
        read_out = {"train/loss": read_out["train/loss_contrastive"] + read_out["train/loss_aux"]} | read_out
        if bad:
            if is_bad_share(int(read), int(bad), self.config.data.max_bad_share):
                self._refuse_bad(int(read))
            read_out["data/bad_samples"] = bad
        if bad_shards:
            self._judge_shards(int(shards_read), int(bad_shards))
            read_out["data/bad_shards"] = bad_shards
        if truncated:
            read_out["data/truncated_captions"] = truncated / self.progress.pairs
        asked = max(self.processes.gather_objects(stop_signal)) if stop else 0
        success = {name.rpartition("/")[2]: value for name, value in read_out.items() if name.startswith("routing/success/")}
        all_written = int(done) == self.processes.world
        return StepReport(self.progress.step, read_out["train/loss"], success, asked, all_written, 0.0, read_out)

    def _refuse_bad(self, read: int) -> None:
        """Name the worst shards of all ranks, which are asked for only now."""
        check_bad_share(read, self._of_all_ranks(self.loader.bad), self.config.data.max_bad_share)

    def _judge_shards(self, read: int, broken: int) -> None:
        """Look at which shards broke off, when more did than before and their share is too large."""
        limit, shards = self.config.data.max_bad_shards, self.loader.shards
        if broken > self._broken and too_many_bad_shards(shards, read, broken, limit):
            check_bad_shards(shards, read, self._of_all_ranks(self.loader.bad_shards), limit)
        self._broken = broken

    def _of_all_ranks(self, counts: dict[str, int]) -> dict[str, int]:
        total: dict[str, int] = {}
        for of_rank in self.processes.gather_objects(counts):
            add_counts(total, of_rank)
        return total

    def _check_finite(self, finite: bool) -> None:
        self._nonfinite_in_a_row = 0 if finite else self._nonfinite_in_a_row + 1
        if self._nonfinite_in_a_row >= self.config.train.max_nonfinite_steps:
            raise UserError(
                f"the loss or its gradient was not finite in {self._nonfinite_in_a_row} steps in a row, the last of them step "
                f"{self.progress.step}: lower optim.lr, lengthen schedule.warmup_steps, or use train.precision=fp32"
            )

    def _performance(self, seconds: float, data_seconds: float) -> dict[str, float]:
        measured = {
            "perf/step_seconds": seconds,
            "perf/data_seconds": data_seconds,
            "perf/pairs_per_second": self.config.train.batch_size / seconds,
            "perf/memory_gib": memory_gib(self.processes.device),
        }
        mfu = utilisation(self._flops, seconds, self.processes.world, self.processes.device)
        return measured if mfu is None else measured | {"perf/mfu": mfu}


def _loss_metrics(micro: list[Losses]) -> dict[str, Tensor]:
    """Losses averaged and routing summed over the micro-batches of a step; scalars."""

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    metrics = {
        "train/loss_contrastive": mean([losses.contrastive for losses in micro]),
        "train/loss_aux": mean([losses.auxiliary for losses in micro]),
    }
    metrics |= {f"train/aux/{name}": mean([losses.parts[name] for losses in micro]) for name in micro[0].parts}
    routing: dict[int, RoutingSums] = {
        layer: reduce(add, [losses.routing[layer] for losses in micro]) for layer in micro[0].routing
    }
    return metrics | routing_metrics(routing)
