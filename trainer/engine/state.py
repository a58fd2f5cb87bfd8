"""The logical state of a training run: tensors by parameter name, whatever the layout.

Dense tensors are whole; experts are `[E, ...]`, of which a rank writes its own as a DTensor shard. Keys: `model/<name>`,
`exp_avg/<name>`, `exp_avg_sq/<name>`, and with train.ema `ema/<name>`, all float32. What is not learned by gradient (frozen
parameters, and the routers' loss-free biases, the only buffers there are) has `model/<name>` alone: it goes with the weights and
with their average.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from model.experts import Experts
from trainer.distributed.processes import Processes
from trainer.distributed.shares import deal, source

WEIGHTS = "model"
MOMENTS = ("exp_avg", "exp_avg_sq")
EMA = "ema"
"""The moving average of the weights (trainer.engine.ema)."""


class ExpertSharding:
    """How tensors are spread over the ranks: dense ones whole on each, experts split over the ranks of every EP group."""

    def __init__(self, processes: Processes, expert_parallel: int) -> None:
        self._processes = processes
        self._expert_parallel = expert_parallel
        ranks = torch.arange(processes.world).view(-1, expert_parallel)
        # Only describes who has what; nothing is ever sent over it, so no process groups are made.
        self._mesh = DeviceMesh("cpu", ranks, _init_backend=False, _rank=processes.rank)

    def wrap(self, local: Tensor) -> DTensor:
        """This rank's experts `[e, ...]` as a piece of `[E, ...]`."""
        return DTensor.from_local(local, self._mesh, [Replicate(), Shard(0)], run_check=False)

    def deal(self, sizes: Mapping[str, int], experts: Collection[str]) -> dict[str, range]:
        """trainer.distributed.shares.deal for these ranks."""
        return deal(sizes, experts, self._processes.world, self._expert_parallel)

    def is_mine(self, dealt: range) -> bool:
        """Whether this rank reads and writes what is dealt to these ranks."""
        return self._processes.rank in dealt

    def handed_round(self, mine: Tensor | None, like: Tensor, dealt: range) -> Tensor:
        """A tensor from the rank it was dealt to, on each rank that needs it. A collective of those.

        mine: this rank's, if it was dealt to it; like: has the shape wanted. On the device of the process.
        """
        processes = self._processes
        device = processes.device
        value = torch.empty(like.shape, dtype=torch.float32, device=device) if mine is None else mine.to(device)
        needed_by = processes.world // len(dealt)
        if needed_by > 1:
            group = None if len(dealt) == 1 else self._copies()
            dist.broadcast(value, source(dealt, processes.rank), group=group)
        return value

    def _copies(self) -> dist.ProcessGroup | None:
        """The ranks that have the same experts."""
        from deepspeed.utils import groups

        return groups._get_expert_data_parallel_group(f"ep_size_{self._expert_parallel}")


class SavedTensors(Protocol):
    """The logical state in a checkpoint, read piece by piece."""

    kinds: tuple[str, ...]
    """Which of model, exp_avg, exp_avg_sq and ema there are."""

    def tensors(self, kind: str, again: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Name and value, one after the other: dense tensors whole, this rank's experts; float32. A collective.

        again: the same kind will be requested once more, so what was read from disk is kept until then.
        """
        ...


def expert_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are stacked over experts."""
    return {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, Experts)
        for name, _ in module.named_parameters()
    }


def masters(optimizer: Any) -> list[Tensor]:
    """The flat pieces of the float32 weights that ZeRO gave this rank."""
    return getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups


def _groups_of_masters(optimizer: Any) -> list[dict[str, Any]]:
    """The optimizer group of each of them."""
    groups = optimizer.optimizer.param_groups
    of_piece = getattr(optimizer, "sub_group_to_group_id", None)  # stage 3 cuts large groups
    return [groups[of_piece[number] if of_piece else number] for number in range(len(masters(optimizer)))]


def prepare_optimizer_state(engine: Any) -> None:
    """Let DeepSpeed's accessors find the moments of ALL groups; before the first applied step they are zeros.

    Stages 1 and 2 link them after the first group's first step, and never again: other groups stay unlinked (DeepSpeed 0.19.8).
    """
    optimizer = engine.optimizer
    for master in masters(optimizer):
        adam = optimizer.optimizer.state[master]
        if not adam:
            adam["step"] = torch.tensor(0.0)
            for moment in MOMENTS:
                adam[moment] = torch.zeros_like(master)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def kept_kinds(engine: Any) -> tuple[str, ...]:
    """What this run keeps for each weight: its moments, and its average if there is one."""
    return (*MOMENTS, EMA) if any(EMA in adam for adam in engine.optimizer.optimizer.state.values()) else MOMENTS


def read_state(engine: Any, processes: Processes, sharding: ExpertSharding) -> dict[str, Tensor]:
    """This rank's share of the state, on the CPU, which it has to write. A collective.

    Tensors are dealt out so that every rank writes about as many weights, and each tensor is written once.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    prepare_optimizer_state(engine)
    kept = kept_kinds(engine)
    experts = expert_names(engine.module)
    dealt = sharding.deal(tensor_sizes(engine.module), experts)
    share: dict[str, Tensor] = {
        f"{WEIGHTS}/{name}": buffer.to("cpu", torch.float32, copy=True)
        for name, buffer in engine.module.named_buffers()
        if sharding.is_mine(dealt[name])
    }
    for name, value in engine.frozen_values.items():
        share[f"{WEIGHTS}/{name}"] = sharding.wrap(value) if name in experts else value
    for name, parameter in trained_parameters(engine.module).items():
        for kind in (WEIGHTS, *kept):  # one after the other: each is whole on the device briefly
            value = safe_get_full_fp32_param(parameter) if kind == WEIGHTS else safe_get_full_optimizer_state(parameter, kind)
            if sharding.is_mine(dealt[name]):
                local = value.detach().to("cpu", torch.float32, copy=True)
                share[f"{kind}/{name}"] = sharding.wrap(local) if name in experts else local
            del value
    return share


def frozen_values(model: nn.Module, processes: Processes, expert_parallel: int) -> dict[str, Tensor]:
    """Of the parameters that require no gradient, what this rank has to write of each checkpoint: float32, on the CPU.

    No optimizer has a float32 master of these, and a model that is cast to bfloat16 no longer has their values.
    """
    dealt = deal(tensor_sizes(model), expert_names(model), processes.world, expert_parallel)
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and processes.rank in dealt[name]
    }


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def tensor_sizes(model: nn.Module) -> dict[str, int]:
    """Elements of each parameter and buffer on a rank, whole even if ZeRO-3 has split it."""
    return {name: int(getattr(tensor, "ds_numel", tensor.numel())) for name, tensor in named_tensors(model).items()}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def key_of(kind: str, name: str, saved: Collection[str]) -> str | None:
    """Under which of the saved keys a checkpoint holds a tensor of a kind; None for a moment that it does not hold.

    What was not learned by gradient has no key of its own as an average: that is its value.
    """
    key = f"{kind}/{name}"
    if key in saved or kind == WEIGHTS:
        return key
    return f"{WEIGHTS}/{name}" if kind == EMA else None


@torch.no_grad()
def set_weights(model: nn.Module, state: SavedTensors, kind: str = WEIGHTS, again: bool = False) -> None:
    """Copy `model/*`, or the averages `ema/*`, into a module that DeepSpeed has not wrapped yet; `again` as in SavedTensors."""
    tensors = named_tensors(model)
    for name, value in state.tensors(kind, again):
        tensors[name].copy_(value)


@torch.no_grad()
def set_optimizer_state(engine: Any, state: SavedTensors, optimizer_steps: int) -> None:
    """Give the engine the float32 masters and Adam's moments, kind by kind; optimizer_steps: how many were applied so far.

    The engine must have been built over the same weights: setting the masters alone would leave the forward weights stale.
    """
    prepare_optimizer_state(engine)
    optimizer = engine.optimizer
    for master, group in zip(masters(optimizer), _groups_of_masters(optimizer), strict=True):
        optimizer.optimizer.state[master]["step"].fill_(optimizer_steps - group["trained_since"])
    set_kind(engine, state, WEIGHTS)
    for moment in MOMENTS:
        set_kind(engine, state, moment)


@torch.no_grad()
def set_kind(engine: Any, state: SavedTensors, kind: str) -> None:
    """Set the masters (`model`), a moment or the averages of all trained parameters from a checkpoint."""
    parameters = trained_parameters(engine.module)
    for name, value in state.tensors(kind):
        if name not in parameters:  # frozen, or a buffer: the module has it already
            continue
        set_full(engine.optimizer, parameters[name], value, None if kind == WEIGHTS else kind)


def set_full(optimizer: Any, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
    """Set this rank's piece of a parameter's float32 master (None), moment or average, from the whole."""
    if not hasattr(parameter, "ds_id"):  # stages 1 and 2
        parameter.set_full_hp_param(value, kind)  # type: ignore[attr-defined]  # DeepSpeed's
        return
    # Stage 3 pads a parameter that its ranks do not divide, and DeepSpeed's setter (0.19.8) fails where the padding begins.
    piece, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=kind)
    start = piece.numel() * optimizer._get_param_partition_rank(parameter)
    mine = value.flatten()[start : start + piece.numel()]
    piece[: mine.numel()].copy_(mine)
