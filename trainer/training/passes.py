"""A step's pairs through the model and back: each micro-batch for itself, or all of them as pieces of one batch."""

import random
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from model.contrastive import pair_rows
from model.limoe import expert_layers
from model.objective import Losses, training_losses
from model.patch_dropout import draw_kept
from model.pieces import FirstPass, replayed, whole_losses
from model.regions import region
from model.routing import Assignment
from model.stream import IMAGE, TEXT, Segment
from trainer.config.schema import Config
from trainer.distributed.peers import DistributedPeers

Piece = Callable[[], tuple[Tensor, Tensor]]
"""Puts the images and texts of a micro-batch on the device: each time they pass the model, so that they need not stay there."""


class SeenPatches:
    """Which patches of its images a rank trains on in one step: a function of seed, step and the image's row in the global batch.

    So it is the same in every layout and in every pass. With train.patch_dropout=0, all of them, which is None.
    """

    def __init__(self, config: Config, step: int, peers: DistributedPeers) -> None:
        self._key = random.Random(f"{config.seed}/patches/{step}").getrandbits(64)
        self._patches, self._seen = config.model.image_patches, config.trained_patches
        self._rows = config.train.batch_size // config.train.accumulate  # of a piece, over all ranks
        self._peers = peers

    def of(self, images: Tensor, piece: int) -> Tensor | None:
        """Those of this rank's images `[b, 3, H, W]` in a piece, for LIMoE.forward."""
        if self._seen == self._patches:
            return None
        first = piece * self._rows + self._peers.rank * len(images)
        return draw_kept(self._key, first, len(images), self._patches, self._seen).to(images.device, non_blocking=True)


class Noise:
    """The noise of the routers in one step on one rank: a function of seed, step, rank and routing group, and of nothing else.

    So a resumed run draws what the uninterrupted one would, a second pass what the first one did, and a batch in pieces what the
    same batch in one piece would if it is routed in the same groups.
    """

    def __init__(self, config: Config, step: int, peers: DistributedPeers) -> None:
        self._seed = (config.seed * 1_000_003 + step) * peers.world + peers.rank
        self._device = peers.processes.device
        local = config.train.batch_size // peers.world // config.train.accumulate
        self._groups = -(-local // (config.router.group_size or local))  # of a piece

    def generators(self, piece: int = 0) -> list[torch.Generator]:
        """One for each routing group of a piece, at their beginning."""
        first = piece * self._groups
        return [self._generator(group) for group in range(first, first + self._groups)]

    def _generator(self, group: int) -> torch.Generator:
        # Mixed: the generator of a CPU reads the lower half of a seed alone, and neighbours are other ranks' and steps'.
        seed = random.Random(f"{self._seed}/group/{group}").getrandbits(63) if group else self._seed
        return torch.Generator(self._device).manual_seed(seed)


class Passes:
    """Runs a step's micro-batches through the engine's model, forwards and back."""

    def __init__(
        self,
        engine: Any,
        config: Config,
        peers: DistributedPeers,
        computing: Callable[[], AbstractContextManager[None]] = nullcontext,
        saw: Callable[[Tensor, Tensor, Tensor | None], None] | None = None,
    ) -> None:
        """computing: entered around each forward pass.

        saw: gets each contrastive batch's embeddings, and the scale and bias of the logits.
        """
        self._engine = engine
        self._config = config
        self._peers = peers
        self._computing = computing
        self._saw = saw
        self._of_losses = (config.router.aux, config.model.routed_experts, peers, config.train.loss_chunk)

    def backward(self, pieces: Iterable[Piece], step: int) -> list[Losses]:
        """Add up the gradients of a step's `train.accumulate` micro-batches; the engine takes its step after the last of them.

        Returns the losses of each contrastive batch: of every micro-batch if `train.negatives` says so, else of the whole one.
        A collective.
        """
        noise, seen = Noise(self._config, step, self._peers), SeenPatches(self._config, step, self._peers)
        if self._config.train.in_pieces:
            return [self._as_one_batch(pieces, noise, seen)]
        return self._each_for_itself(pieces, noise, seen)

    def _each_for_itself(self, pieces: Iterable[Piece], noise: Noise, seen: SeenPatches) -> list[Losses]:
        generators, found = noise.generators(), []
        for number, piece in enumerate(pieces):
            images, texts = piece()
            with region("forward"), self._computing():
                output = self._engine(images, texts, self._draw(images, texts, generators), seen.of(images, number))
            with region("loss"):
                losses = training_losses(output, *self._of_losses)
            if self._saw and output.images is not None and output.texts is not None:
                self._saw(pair_rows(output.images, output.texts), output.scale, output.bias)
            with region("backward"):
                self._engine.backward(losses.total)
            with region("optimizer"):
                self._engine.step()
            found.append(losses)
        return found

    def _as_one_batch(self, pieces: Iterable[Piece], noise: Noise, seen: SeenPatches) -> Losses:
        """In the three parts of model.pieces."""
        passed = [(piece, self._first_pass(piece, number, noise, seen)) for number, piece in enumerate(pieces)]
        first_passes = [first for _, first in passed]
        with region("loss"):
            losses, gradients = whole_losses(first_passes, *self._of_losses)
        if self._saw:
            self._saw(torch.cat([first.pair_bd for first in first_passes]), first_passes[0].scale, first_passes[0].bias)
        for number, ((piece, first), gradient) in enumerate(zip(passed, gradients, strict=True)):
            images, texts = piece()
            drawn = self._draw(images, texts, noise.generators(number))
            assignments = {layer: first.decisions[layer].assignment(drawn[layer].noise_ne) for layer in drawn}
            with region("forward"), self._computing():
                output = self._engine(images, texts, assignments, seen.of(images, number))
            with region("backward"):
                # Not divided by the number of pieces: they add up to the batch, where micro-batches are averaged.
                self._engine.backward(replayed(output, gradient), scale_wrt_gas=False)
            with region("optimizer"):
                self._engine.step()
        return losses

    @torch.no_grad()
    def _first_pass(self, piece: Piece, number: int, noise: Noise, seen: SeenPatches) -> FirstPass:
        images, texts = piece()
        with region("first pass"), self._computing():
            # Past the engine, which would expect a backward pass.
            drawn = self._draw(images, texts, noise.generators(number))
            return FirstPass.of(self._engine.module(images, texts, drawn, seen.of(images, number)))

    def _draw(self, images: Tensor, texts: Tensor, generators: list[torch.Generator]) -> dict[int, Assignment]:
        """New assignments of all expert layers for one pass, by layer."""
        segments = (Segment(IMAGE, len(images), self._config.trained_image_tokens), Segment(TEXT, *texts.shape))
        return {index: layer.draw(segments, generators) for index, layer in expert_layers(self._engine.module).items()}
