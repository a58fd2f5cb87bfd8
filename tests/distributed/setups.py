"""Tiny runs for the tests: configurations by layout, batches, training in real processes, and the state they end in."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.auxiliary import sum_over
from model.balance import update_biases
from model.config import kept_patches
from model.freeze import freeze
from model.limoe import LIMoE
from model.objective import training_losses
from model.patch_dropout import draw_kept
from model.peers import SingleProcess
from trainer.checkpoint.files import checkpoint_path
from trainer.checkpoint.load import SavedState, load_state, read_progress, resumed_kinds, trained_since
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.save import Checkpointer
from trainer.checkpoint.start import start_from
from trainer.config.schema import CheckpointConfig, Config
from trainer.data.order.mixture import Mixture
from trainer.data.shards.captions import CaptionRule
from trainer.distributed.device import dtype_of
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.engine.build import build_engine, start_deepspeed
from trainer.engine.ema import start_ema, update_ema
from trainer.engine.state import MOMENTS, WEIGHTS, ExpertSharding, read_state, set_optimizer_state, set_weights
from trainer.training.passes import Passes

BATCH = 16
"""Pairs of a global batch."""


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over its processes, and what else is changed in its configuration, by dotted name."""

    world: int = 1
    expert_parallel: int = 1
    zero_stage: int = 1
    changes: tuple[tuple[str, Any], ...] = ()

    def with_(self, **changes: Any) -> "Layout":
        """The same with changes; `__` in a name stands for a dot."""
        added = tuple((name.replace("__", "."), value) for name, value in changes.items())
        return Layout(self.world, self.expert_parallel, self.zero_stage, self.changes + added)

    def __str__(self) -> str:
        return "/".join(map(str, (self.world, self.expert_parallel, self.zero_stage)))


def tiny(layout: Layout | None = None) -> Config:
    """Three narrow blocks, experts in two of them, float32. Nothing is dropped and no noise is drawn, so that layouts can agree.

    Clipping is active, and `eps` so large that a step is not merely the sign of the gradient.
    """
    layout = layout or Layout()
    config = Config()
    config.model.width, config.model.mlp, config.model.embedding = 32, 64, 32
    config.model.image_size, config.model.patch, config.model.text_length, config.model.vocabulary = 16, 4, 8, 100
    config.model.layers, config.model.expert_layers = 3, [1, 2]
    config.router.capacity_factor, config.router.noise = float(config.model.experts), 0.0
    config.train.batch_size, config.train.precision = BATCH, "fp32"
    config.optim.lr, config.optim.eps, config.optim.weight_decay, config.optim.clip_norm = 0.01, 1e-3, 0.1, 0.5
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.parallel.expert_parallel, config.parallel.zero_stage = layout.expert_parallel, layout.zero_stage
    for name, value in layout.changes:
        part, _, leaf = name.rpartition(".")
        owner = reduce(getattr, part.split("."), config) if part else config
        assert hasattr(owner, leaf), name
        setattr(owner, leaf, value)
    return config


def batch(step: int, config: Config, micro: int = 0) -> tuple[Tensor, Tensor]:
    """The pairs of one micro-batch of a step over all processes: images `[B, 3, H, W]`, tokens `[B, L]`, some of them padded."""
    count = config.train.batch_size // config.train.accumulate
    generator = torch.Generator().manual_seed(1000 * step + micro)
    size = config.model.image_size
    images = torch.randn(count, 3, size, size, generator=generator).to(dtype_of(config.train.precision))
    texts = torch.randint(1, config.model.vocabulary, (count, config.model.text_length), generator=generator)
    texts[::3, 5:] = 0
    return images, texts


def rows_of(rank: int, world: int, *tensors: Tensor) -> list[Tensor]:
    """One rank's share of the rows."""
    return [tensor.chunk(world)[rank] for tensor in tensors]


class TinyRun:
    """A run as the training loop builds it, from the seed or a checkpoint, without data and records.

    source: a checkpoint to take the first weights from.
    """

    def __init__(self, config: Config, processes: Processes, checkpoint: Path | None = None, source: Path | None = None) -> None:
        self.config = config
        self.processes = processes
        self.saved = checkpoint
        self.progress = TrainingProgress(seed=config.seed)
        self.peers: DistributedPeers = start_deepspeed(processes, config.parallel.expert_parallel)
        self.sharding = ExpertSharding(processes, config.parallel.expert_parallel)
        model = freeze(LIMoE(config.model, config.router, self.peers).initialise(config.seed), config.train.freeze)
        state: SavedState | None = None
        if checkpoint is not None:
            self.progress = read_progress(checkpoint)
            state = load_state(checkpoint, model, self.sharding, resumed_kinds(checkpoint, config.train))
            set_weights(model, state, again=True)
            self.progress.trained_since = trained_since(state, self.progress)
        elif source is not None:
            start_from(source, config, "or not").load(model, self.sharding, self.peers)
        self.engine = build_engine(config, model, processes, self.peers, self.progress.trained_since)
        if state is not None:
            set_optimizer_state(self.engine, state, self.progress.optimizer_steps)
        start_ema(self.engine, config.train, state, self.progress.step, processes)

    def step(self) -> tuple[float, float]:
        """The next optimizer step: the global loss, and the gradient's norm before clipping."""
        config = self.config
        pieces = [partial(self._rows, micro) for micro in range(config.train.accumulate)]
        batches = Passes(self.engine, config, self.peers).backward(pieces, self.progress.step)
        losses = [self.processes.sum(losses.total) / self.processes.world for losses in batches]
        update_biases(self.engine.module, sum_over([losses.routing for losses in batches]))
        if config.train.ema is not None:
            update_ema(self.engine, config.train.ema)
        self.progress.step += 1
        self.progress.optimizer_steps += 1
        return float(torch.stack(losses).mean()), float(self.engine.get_global_grad_norm())

    def _rows(self, micro: int) -> tuple[Tensor, Tensor]:
        """This rank's share of a micro-batch of the present step."""
        images, texts = rows_of(self.processes.rank, self.processes.world, *batch(self.progress.step, self.config, micro))
        return images.to(self.processes.device), texts.to(self.processes.device)

    def save(self, run_dir: Path, keep: int = 100) -> Path:
        """Write a checkpoint to its end."""
        checkpointer = Checkpointer(run_dir, CheckpointConfig(keep=keep), self.processes, self.sharding, self.saved)
        checkpointer.save(self.engine, self.progress)
        checkpointer.wait()
        self.saved = checkpoint_path(run_dir, self.progress.step)
        return self.saved

    def share(self) -> dict[str, Any]:
        """This rank's share of the state, as plain tensors; experts with their place among the ranks."""
        share = read_state(self.engine, self.processes, self.sharding)
        return {
            name: (self.peers.expert_rank, value.to_local().cpu().clone()) if isinstance(value, DTensor) else value.cpu()
            for name, value in share.items()
        }


def whole(shares: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
    """The logical state from the shares of all ranks. Copies of the same experts must be equal to the last bit."""
    state: dict[str, Tensor] = {}
    pieces: dict[str, dict[int, Tensor]] = {}
    for share in shares:
        for name, value in share.items():
            if isinstance(value, Tensor):
                assert name not in state, f"{name} is written by two ranks"
                state[name] = value
                continue
            place, local = value
            assert torch.equal(pieces.setdefault(name, {}).setdefault(place, local), local), f"copies of {name} differ"
    return state | {name: torch.cat([places[place] for place in sorted(places)]) for name, places in pieces.items()}


@dataclass
class Trained:
    """What a run came to: losses and norms by step, and logical states by the number of steps done."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def decays(name: str) -> bool:
    """Whether weight decay applies: a list written by hand, to check the program's rule against."""
    matrices = (
        "project",
        "table",
        "qkv",
        "out",
        "router",
        "heads.image",
        "heads.text",
        "mlp.up",
        "mlp.down",
        "shared.up",
        "shared.down",
    )
    owner, _, leaf = name.rpartition(".")
    return (leaf == "weight" and owner.endswith(matrices)) or name.endswith(("experts.up", "experts.down"))


def seen_patches(config: Config, step: int) -> Tensor | None:
    """Of all images of a step, the patches that are not dropped, drawn at once: `[B, k]`; None for all."""
    if not config.train.patch_dropout:
        return None
    key, patches = random.Random(f"{config.seed}/patches/{step}").getrandbits(64), config.model.image_tokens
    return draw_kept(key, 0, config.train.batch_size, patches, kept_patches(patches, config.train.patch_dropout))


def plain_torch(
    config: Config,
    steps: int,
    keep: Iterable[int],
    factors: Mapping[str, float] | None = None,
    freezes: Sequence[Sequence[str]] = (),
) -> Trained:
    """The same training without DeepSpeed and without other processes, in the fewest words.

    freezes: what train.freeze is in each step, if it changes.
    """
    model = LIMoE(config.model, config.router).initialise(config.seed)
    parameters, factors = dict(model.named_parameters()), factors or {}
    optim = config.optim
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": optim.weight_decay if decays(name) else 0.0, "lr": optim.lr * factors.get(name, 1.0)}
            for name, p in parameters.items()
        ],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
    )
    trained = Trained()
    for step in range(steps):
        losses, routing = [], []
        seen = seen_patches(config, step)
        batches = [batch(step, config, micro) for micro in range(config.train.accumulate)]
        if config.train.negatives == "batch":
            batches = [(torch.cat([images for images, _ in batches]), torch.cat([texts for _, texts in batches]))]
        for images, texts in batches:
            output = model(images, texts, None, seen.split(len(images))[len(losses)] if seen is not None else None)
            loss = training_losses(output, config.router.aux, config.model.routed_experts, SingleProcess())
            (loss.total / len(batches)).backward()
            losses.append(loss.total.item())
            routing.append(loss.routing)
        patterns = freezes[step] if freezes else config.train.freeze
        for name, parameter in parameters.items():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                parameter.grad = None
                optimizer.state.pop(parameter, None)
        trained.losses.append(sum(losses) / len(losses))
        trained.norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), optim.clip_norm)))
        optimizer.step()
        optimizer.zero_grad()
        update_biases(model, sum_over(routing))
        if step + 1 in keep:
            state = {f"{WEIGHTS}/{name}": value.detach().clone() for name, value in model.state_dict().items()}
            trained.states[step + 1] = state | {
                f"{moment}/{name}": optimizer.state[p][moment].clone()
                for name, p in parameters.items()
                for moment in MOMENTS
                if p in optimizer.state
            }
    return trained


class NothingUnusable:
    """The counters of a TrainingLoader whose samples and shards are all usable."""

    def __init__(self) -> None:
        self.read = self.shards_read = self.truncated = self.left_out = 0
        self.shards = self.streams = 1
        self.mixture = Mixture.of_one([], CaptionRule())
        self.bad: Counter[str] = Counter()
        self.bad_shards: Counter[str] = Counter()
