"""Which configurations can run on which processes: checks before anything is built, and the table of who owns what."""

import socket

import torch

from model.config import ModelConfig, RouterConfig
from model.routing import PRIORITIES
from trainer.config import Config
from trainer.errors import UserError
from trainer.logs.tables import LayoutRow
from trainer.processes import Processes


def check_model(model: ModelConfig, router: RouterConfig) -> None:
    """Raise UserError for an architecture that cannot be built."""
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is not divisible by model.heads={model.heads}: change one of them")
    if model.image_size % model.patch:
        raise UserError(f"model.image_size={model.image_size} is not divisible by model.patch={model.patch}: change one of them")
    if model.towers not in (1, 2):
        raise UserError(f"model.towers={model.towers}: choose 1 (shared) or 2 (one a modality)")
    beyond = [layer for layer in model.expert_layers if not 0 <= layer < model.layers]
    if beyond:
        raise UserError(
            f"model.expert_layers names {beyond}, but the blocks are 0 to {model.layers - 1} (model.layers={model.layers})"
        )
    if model.towers == 2 and model.expert_layers:
        raise UserError("model.towers=2 is the dense baseline: set model.expert_layers=[], or model.towers=1 for experts")
    if model.expert_layers and not 1 <= router.top_k <= model.experts:
        raise UserError(f"router.top_k={router.top_k} must lie between 1 and model.experts={model.experts}")
    if router.priority not in PRIORITIES:
        raise UserError(f"router.priority={router.priority}: choose {' or '.join(PRIORITIES)}")
    if router.capacity_factor <= 0 or (router.eval_capacity_factor is not None and router.eval_capacity_factor <= 0):
        raise UserError(
            "router.capacity_factor and router.eval_capacity_factor must be above 0 (null for evaluation drops nothing)"
        )
    if router.noise < 0:
        raise UserError(f"router.noise={router.noise} must not be negative; 0 switches the noise off")


def check_layout(config: Config, world: int) -> None:
    """Raise UserError when the configuration does not fit `world` processes."""
    check_model(config.model, config.router)
    parallel, train = config.parallel, config.train
    ep = parallel.expert_parallel
    if parallel.zero_stage not in (1, 2, 3):
        why = ": DeepSpeed's stage 0 clips gradients wrongly when there are experts" if parallel.zero_stage == 0 else ""
        raise UserError(f"parallel.zero_stage={parallel.zero_stage}: choose 1, 2 or 3{why}")
    if ep < 1 or world % ep:
        raise UserError(
            f"parallel.expert_parallel={ep} does not divide the {world} processes of this run: "
            f"start a multiple of {max(ep, 1)} processes or choose a divisor of {world}"
        )
    if not config.model.expert_layers and ep > 1:
        raise UserError(
            f"parallel.expert_parallel={ep}, but model {config.model.name} has no expert layers: use parallel.expert_parallel=1"
        )
    if config.model.expert_layers and config.model.experts % ep:
        raise UserError(
            f"model.experts={config.model.experts} is not divisible by parallel.expert_parallel={ep}: "
            f"each rank must own as many experts as any other"
        )
    if train.precision not in ("bf16", "fp32"):
        raise UserError(f"train.precision={train.precision}: choose bf16 or fp32")
    if train.activation_checkpointing not in ("none", "blocks", "offload"):
        raise UserError(f"train.activation_checkpointing={train.activation_checkpointing}: choose none, blocks or offload")
    if train.steps < 1 or train.accumulate < 1:
        raise UserError(f"train.steps={train.steps} and train.accumulate={train.accumulate} must be at least 1")
    _check_batches(config, world)


def _check_batches(config: Config, world: int) -> None:
    train = config.train
    pieces = world * train.accumulate
    if train.batch_size < pieces or train.batch_size % pieces:
        raise UserError(
            f"train.batch_size={train.batch_size} (global) is not divisible by {world} processes x {train.accumulate} "
            f"micro-batches: use a multiple of {pieces}"
        )
    if config.eval.batch_size < world or config.eval.batch_size % world:
        raise UserError(
            f"eval.batch_size={config.eval.batch_size} (global) is not divisible by the {world} processes: "
            f"use a multiple of {world}"
        )
    local, group = train.batch_size // pieces, config.router.group_size
    if group is not None and (group < 1 or local % min(group, local)):
        raise UserError(f"router.group_size={group} does not divide the {local} pairs of one process's micro-batch")


def layout_rows(config: Config, processes: Processes) -> list[LayoutRow]:
    """Who owns what, a row a rank, on every rank. A collective."""
    ep = config.parallel.expert_parallel
    owned = config.model.experts // ep
    expert_rank = processes.rank % ep
    device = str(processes.device)
    if processes.device.type == "cuda":
        device += f" {torch.cuda.get_device_name(processes.device)}"
    experts = range(expert_rank * owned, (expert_rank + 1) * owned) if config.model.expert_layers else range(0)
    row = LayoutRow(rank=processes.rank, host=socket.gethostname(), device=device, ep_rank=expert_rank, experts=list(experts))
    return processes.gather_objects(row)
