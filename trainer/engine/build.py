"""DeepSpeed around a model with experts of our own: expert groups, ZeRO, AdamW, clipping, activation checkpointing."""

import logging
import os
import warnings
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

# Before DeepSpeed is imported: nothing is compiled at start, and nothing but errors is printed.
os.environ.setdefault("DS_ACCELERATOR_LOG_LEVEL", "error")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "ERROR")

import torch
import torch.distributed as dist
from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import Tensor, nn

from model.block import Block
from model.experts import ExpertLayer
from model.freeze import blocks_passed_back
from model.limoe import LIMoE
from model.precision import float32_parameters
from trainer.config.schema import Config
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.engine.mixed_precision import mixed_precision
from trainer.engine.rates import rate_factors
from trainer.engine.state import frozen_values
from trainer.estimate.memory import bucket_elements


def _import_deepspeed() -> Any:
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 has replaced, and warns at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.* is deprecated")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.ops import __compatible_ops__

    # A shared-memory collective that g++ would compile for a minute at the first start, and that works on one host only.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def start_deepspeed(processes: Processes, expert_parallel: int) -> DistributedPeers:
    """Let DeepSpeed adopt the process group and lay out the expert groups; returns the model's peers."""
    os.environ.setdefault("DS_ACCELERATOR", processes.device.type)  # otherwise DeepSpeed guesses, and prints a message
    _tell_device(processes.device)
    deepspeed = _import_deepspeed()
    from deepspeed.utils import groups

    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    groups._create_expert_and_data_parallel(expert_parallel)
    _bound_waiting(processes)
    return DistributedPeers(processes, expert_parallel, groups._get_expert_parallel_group(f"ep_size_{expert_parallel}"))


def _tell_device(device: torch.device) -> None:
    """Let DeepSpeed use the same device as this process: it takes LOCAL_RANK as the device's index.

    If each task sees only one GPU (srun --gpus-per-task), all of them use index 0.
    """
    if device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)


def _bound_waiting(processes: Processes) -> None:
    """Give every group the run's time-out: DeepSpeed's own groups would wait torch's 10 or 30 minutes for a lost peer."""
    timeout = dist.distributed_c10d._get_default_group()._get_backend(processes.device).options._timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def mark_experts(model: nn.Module, expert_parallel: int, expert_rank: int, zero_stage: int = 1) -> None:
    """Tell DeepSpeed which parameters are experts, and over which group ZeRO shards each.

    The engine finds experts by the class of a module and by attributes of the parameters. A parameterless child of that class
    in each expert layer is enough, so the model itself needs no DeepSpeed. Without the placement attributes ZeRO-3 would
    shard experts over the wrong ranks and still run, frozen ones too; stages 1 and 2 refuse a marked model that trains no expert.
    """
    _import_deepspeed()
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    class ExpertMarker(AutoEPMoELayer):
        """The class DeepSpeed looks for, empty."""

        def __init__(self, num_experts: int) -> None:
            nn.Module.__init__(self)
            self.num_experts = num_experts
            self.num_local_experts = num_experts // expert_parallel
            self.ep_size = expert_parallel
            self.ep_rank = expert_rank
            self.expert_group_name = f"ep_size_{expert_parallel}"

        def set_deepspeed_parallelism(self, *args: Any, **kwargs: Any) -> None:
            """The groups are laid out already."""

    layers = [module for module in model.modules() if isinstance(module, ExpertLayer)]
    marked = zero_stage == 3 or any(parameter.requires_grad for layer in layers for parameter in layer.experts.parameters())
    for layer in layers:
        if marked:
            layer.deepspeed_marker = ExpertMarker(layer.num_experts)
        for parameter in layer.experts.parameters():
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = f"ep_size_{expert_parallel}"  # type: ignore[attr-defined]
            parameter.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
            parameter.ds_zero_partition_group_name = f"ep_size_{expert_parallel}"  # type: ignore[attr-defined]


def is_expert(parameter: nn.Parameter) -> bool:
    """Whether `mark_experts` marked it."""
    return not getattr(parameter, "allreduce", True)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    expert_parallel: int,
    mixed: bool = False,
    factors: Mapping[str, float] = MappingProxyType({}),
    trained_since: Mapping[str, int] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Optimizer groups: dense and expert parameters, each with decay (matrices) and without (norms, biases, positions, scale).

    mixed: the model runs in a dtype other than float32, so parameters that stay in float32 need their own groups: ZeRO puts each
    group into one flat tensor. factors: on the learning rate, by parameter, 1 if not named; trained_since: as in
    TrainingProgress, 0 if not named. Each of these has groups of its own, which know it as `rate_factor` and `trained_since`.
    Every parameter that is not frozen is in exactly one group.
    """
    precise = {name for name, _ in float32_parameters(model)} if mixed else set()
    members: dict[tuple[bool, bool, bool, float, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = (is_expert(parameter), _decays(name), name in precise, factors.get(name, 1.0), trained_since.get(name, 0))
        members.setdefault(kind, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (expert, decays, is_precise, factor, since), parameters in sorted(members.items(), key=lambda item: item[0]):
        group = {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "rate_factor": factor,
            "trained_since": since,
            "name": f"{'expert' if expert else 'dense'}, {'decay' if decays else 'no decay'}{', float32' if is_precise else ''}",
        }
        groups.append(group | ({"moe": True, "name": f"ep_size_{expert_parallel}"} if expert else {}))
    return groups


def _decays(name: str) -> bool:
    """Matrices only: not biases (stacked ones neither), norms, positions, or the scale and bias of the logits."""
    leaf = name.rpartition(".")[2]
    return leaf in ("weight", "up", "down") and "norm" not in name


def deepspeed_settings(config: Config, world: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for ours."""
    train = config.train
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // world // train.accumulate,
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": config.optim.clip_norm,
        "steps_per_print": 2**31,
        "bf16": {"enabled": train.precision == "bf16"},
        "communication_data_type": train.grad_dtype,
        "data_types": {"grad_accum_dtype": train.grad_dtype},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket_elements(config),
            "overlap_comm": False,
            "contiguous_gradients": True,
        },
    }


@cache
def _compiled_block() -> type[Block]:
    """The class of compiled blocks. Made on demand, because importing the compiler takes seconds."""

    class CompiledBlock(Block):
        """A block whose training pass runs compiled. Evaluation does not: its shapes depend on the data."""

        compiled = torch.compile(Block.forward)

        def forward(self, *args: Any) -> tuple[Tensor, Tensor | None]:
            """As Block.forward."""
            return self.compiled(*args) if self.training else super().forward(*args)

    return CompiledBlock


def wrap_blocks(model: LIMoE, config: Config) -> None:
    """Apply torch.compile and activation checkpointing to the blocks, in place and from outside; names do not change.

    Blocks without a backward pass, below which all is frozen, keep nothing that could be recomputed.
    """
    saving = config.train.activation_checkpointing
    for tower, passed in zip(model.towers, blocks_passed_back(model), strict=True):
        for index, block in enumerate(tower.blocks):  # type: ignore[arg-type]  # a ModuleList
            if config.train.compile:
                # By its class, not by block.compile(): fairscale runs the class's forward, in the backward pass too.
                block.__class__ = _compiled_block()
            if saving != "none" and index in passed:
                checkpoint_wrapper(block, offload_to_cpu=saving == "offload")
    # Of torch's reentrant checkpoints, for a block whose inputs have no gradient. FairScale's adds an input that has one.
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")


def build_engine(
    config: Config,
    model: LIMoE,
    processes: Processes,
    peers: DistributedPeers,
    trained_since: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """The DeepSpeed engine that trains the model, but for parameters that require no gradient (model.freeze).

    The model's weights must be final: ZeRO takes its masters from them, and frozen ones are kept for checkpoints. trained_since:
    as in TrainingProgress.
    """
    deepspeed = _import_deepspeed()
    ep = config.parallel.expert_parallel
    frozen = frozen_values(model, processes, ep)
    model.to(processes.device)
    if config.model.expert_layers:
        mark_experts(model, ep, peers.expert_rank, config.parallel.zero_stage)
    wrap_blocks(model, config)
    optim, mixed = config.optim, config.train.precision != "fp32"
    factors = rate_factors(model, optim)
    groups = parameter_groups(model, optim.weight_decay, ep, mixed, factors, trained_since)
    optimizer = torch.optim.AdamW(
        [group | {"lr": optim.lr * group["rate_factor"]} for group in groups],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
    )
    with warnings.catch_warnings(), mixed_precision(deepspeed):
        warnings.simplefilter("ignore")
        engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_settings(config, processes.world), dist_init_required=False
        )
    _bound_waiting(processes)
    engine.frozen_values = frozen
    return engine
