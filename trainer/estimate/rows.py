"""What people want to know about a configuration before training it, as rows of a table."""

import os

from model.config import ModelConfig
from model.count import step_flops
from model.stream import MODALITIES
from trainer.config.checks import check_description
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.estimate.memory import (
    blocks_with_backward,
    contrasted_pairs,
    count,
    estimate_host_memory,
    estimate_memory,
    expert_slots,
    local_pairs,
    logit_columns,
    logit_rows,
    readable_bytes,
)
from trainer.estimate.traffic import estimate_leaving, estimate_sent


def readable(number: float) -> str:
    """A number with its unit: 5.6B, 675M, 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"
    return f"{number:.0f}"


def describe(config: Config, world: int) -> list[tuple[str, str]]:
    """What people want to know about a model, as (what, value) rows; sizes are for `world` processes."""
    model, router = config.model, config.router
    check_description(config, world)
    counts = count(config)
    rows = [
        (
            "model",
            f"{model.name}: {model.towers} tower{'s' if model.towers > 1 else ''}, {model.layers} blocks, width {model.width}"
            f"{_of_texts(model)}",
        ),
        ("parameters", f"{readable(counts.total)} ({counts.total:,})"),
        *frozen_rows(config),
        ("applied per token", f"{readable(counts.applied)} ({counts.applied:,})"),
        ("tokens per pair", f"{model.image_tokens} image + {model.text_length} text{_dropped(config)}"),
        ("training FLOPs per pair", readable(step_flops(model, router, 1, config.train.freeze, config.trained_image_tokens))),
    ]
    if model.expert_layers:
        rows.append(
            ("expert layers", f"{len(model.expert_layers)} of {model.layers} ({', '.join(map(str, model.expert_layers))})")
        )
        shared = f", and {model.shared_experts} shared" if model.shared_experts else ""
        rows.append(("experts", f"{model.routed_experts} per layer{shared}, {readable(counts.experts)} parameters in total"))
        slots, pairs = expert_slots(config, world), local_pairs(config, world)
        rows.append(("slots per expert", f"{slots} for {pairs} pairs per process"))
    return [
        *rows,
        *batch_rows(config, world),
        *loss_rows(config, world),
        *memory_rows(config, world),
        *sent_rows(config, world),
        *leaving_rows(config, world),
    ]


def _dropped(config: Config) -> str:
    seen = config.trained_image_tokens
    return f"; in training {seen} image" if seen < config.model.image_tokens else ""


def frozen_rows(config: Config) -> list[tuple[str, str]]:
    """What train.freeze leaves to train, and where the backward pass ends, if anything is frozen."""
    if not config.train.freeze:
        return []
    counts, passed = count(config), blocks_with_backward(config)
    rows = [
        (
            "trained parameters",
            f"{readable(counts.trained)} ({counts.trained:,}); {readable(counts.total - counts.trained)} frozen",
        )
    ]
    spared = [
        f"{_span(sizes.layers - len(blocks))}{f' of the {MODALITIES[tower]} tower' if len(passed) > 1 else ''}"
        for tower, (sizes, blocks) in enumerate(zip((config.model, config.model.text_tower), passed, strict=False))
        if len(blocks) < sizes.layers
    ]
    return [*rows, ("no backward pass", ", ".join(spared))] if spared else rows


def _span(count: int) -> str:
    """The first blocks: `block 0`, `blocks 0 to 5`."""
    return "block 0" if count == 1 else f"blocks 0 to {count - 1}"


def _of_texts(model: ModelConfig) -> str:
    """The sizes of the texts' tower, where they are its own."""
    texts = model.text_tower
    own = (texts.layers, texts.width) != (model.layers, model.width)
    return f"; of the texts' tower, {texts.layers} blocks, width {texts.width}" if own else ""


def batch_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """How a step's batch is cut, if it is."""
    train, pairs = config.train, local_pairs(config, world)
    if train.accumulate == 1:
        return []
    if train.in_pieces:
        return [
            ("contrastive batch", f"{train.batch_size:,} pairs, {train.accumulate} pieces of {pairs} per process"),
            ("  costs", "a second forward pass of each piece"),
        ]
    return [("contrastive batches", f"{train.accumulate} of {contrasted_pairs(config):,} pairs per step, {pairs} per process")]


def loss_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """Which contrastive loss it is, and how much of its logits a process has at a time."""
    rows, columns = logit_rows(config, world), logit_columns(config, world)
    if config.model.loss == "softmax":
        return [("contrastive loss", f"softmax over {columns:,} pairs; a process computes {rows:,} rows of logits at a time")]
    turns = f", with the texts of {world} processes in turn" if world > 1 else ""
    return [("contrastive loss", f"sigmoid; a process computes {rows:,} x {columns:,} logits at a time{turns}")]


def leaving_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """What leaves a node per step, if LOCAL_WORLD_SIZE in the environment says how many processes a node has."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "0")
    if not local.isdigit():
        raise UserError(f"LOCAL_WORLD_SIZE={local} in the environment must be the number of processes per node")
    if not 0 < int(local) < world:
        return []
    leaving = estimate_leaving(config, world, int(local))
    parts = f"{readable_bytes(leaving.tokens)} of tokens, {readable_bytes(leaving.synchronised)} of gradients and weights"
    return [(f"leaves a node of {local} processes per step", parts)]


def memory_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """Memory of one process of `world`, by part and in total."""
    memory, host = estimate_memory(config, world), estimate_host_memory(config, world)
    pairs, saved = local_pairs(config, world), config.train.activation_checkpointing
    how = "" if saved == "none" else f", activation_checkpointing={saved}"
    return [
        (
            f"memory per process (world {world}, EP {config.parallel.expert_parallel}, ZeRO-{config.parallel.zero_stage})",
            f"about {readable_bytes(memory.total)}, plus 1 to 2 GiB for CUDA itself on a GPU",
        ),
        ("  weights", readable_bytes(memory.weights)),
        ("  gradients", f"{readable_bytes(memory.gradients)}, including DeepSpeed's buffers"),
        ("  optimizer", readable_bytes(memory.optimizer)),
        ("  activations", f"about {readable_bytes(memory.activations)} for {pairs} pairs{how}"),
        (
            "host memory per process",
            f"{readable_bytes(host.start)} at the start, {readable_bytes(host.checkpoint)} while a checkpoint is written"
            + (f", {readable_bytes(host.pairs)} for the pairs of a step" if host.pairs else ""),
        ),
    ]


def sent_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """What one process of `world` sends in an optimizer step."""
    sent = estimate_sent(config, world)
    rows = [
        ("sent per process and step: gradients and weights", readable_bytes(sent.synchronised)),
        ("  embeddings", readable_bytes(sent.embeddings)),
    ]
    if config.model.expert_layers:
        alone = "nothing (expert_parallel=1)"
        rows.append(("  tokens to experts and back", f"{readable_bytes(sent.tokens)} by all-to-all" if sent.tokens else alone))
    return rows
