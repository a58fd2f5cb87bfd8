"""The logical state of a training run: tensors by parameter name, whatever the layout.

Dense tensors are whole; experts are `[E, ...]`, of which a rank holds its own as a DTensor shard. Keys: `model/<name>`,
`exp_avg/<name>`, `exp_avg_sq/<name>`, and with train.ema `ema/<name>`, all float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from model.experts import Experts
from trainer.distributed.processes import Processes

WEIGHTS = "model"
MOMENTS = ("exp_avg", "exp_avg_sq")
EMA = "ema"
"""The moving average of the weights (trainer.engine.ema)."""


class ExpertSharding:
    """How expert tensors lie over the ranks: copies in every EP group, dimension 0 cut over the ranks of one."""

    def __init__(self, processes: Processes, expert_parallel: int) -> None:
        ranks = torch.arange(processes.world).view(-1, expert_parallel)
        # Only describes who holds what; nothing is ever sent over it, so no process groups are made.
        self._mesh = DeviceMesh("cpu", ranks, _init_backend=False, _rank=processes.rank)

    def wrap(self, local: Tensor) -> DTensor:
        """This rank's experts `[e, ...]` as a piece of `[E, ...]`."""
        return DTensor.from_local(local, self._mesh, [Replicate(), Shard(0)], run_check=False)


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
    """What this run keeps for each weight: its moments, and its average if it has one."""
    return (*MOMENTS, EMA) if any(EMA in adam for adam in engine.optimizer.optimizer.state.values()) else MOMENTS


def read_state(engine: Any, processes: Processes, sharding: ExpertSharding) -> dict[str, Tensor]:
    """This rank's share of the state, on the CPU: its experts, and the dense tensors it is to write. A collective.

    Dense tensors are dealt out so that every rank writes about as many bytes; no rank keeps them all.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    prepare_optimizer_state(engine)
    kept = kept_kinds(engine)
    experts = expert_names(engine.module)
    share: dict[str, Tensor] = {}
    written = [0] * processes.world
    for name, parameter in engine.module.named_parameters():
        values = {WEIGHTS: safe_get_full_fp32_param(parameter)}
        values |= {kind: safe_get_full_optimizer_state(parameter, kind) for kind in kept}
        writer = written.index(min(written))
        if name not in experts:
            written[writer] += values[WEIGHTS].numel()
        if name in experts or writer == processes.rank:
            for kind, value in values.items():
                local = value.detach().to("cpu", torch.float32, copy=True)
                share[f"{kind}/{name}"] = sharding.wrap(local) if name in experts else local
    return share


def empty_state(model: nn.Module, kinds: tuple[str, ...], sharding: ExpertSharding | None) -> dict[str, Tensor]:
    """Room for the whole dense state and this rank's experts, or without sharding all experts, to be filled from a checkpoint."""
    experts = expert_names(model) if sharding else set()
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for kind in kinds:
            local = torch.empty(parameter.shape, dtype=torch.float32)
            state[f"{kind}/{name}"] = sharding.wrap(local) if sharding and name in experts else local
    return state


def local_tensor(value: Tensor) -> Tensor:
    """The plain tensor this rank holds."""
    return value.to_local() if isinstance(value, DTensor) else value


@torch.no_grad()
def set_weights(model: nn.Module, state: dict[str, Tensor], kind: str = WEIGHTS) -> None:
    """Copy `model/*`, or the averages `ema/*`, into a module that DeepSpeed has not wrapped yet."""
    for name, parameter in model.named_parameters():
        parameter.copy_(local_tensor(state[f"{kind}/{name}"]))


@torch.no_grad()
def set_optimizer_state(engine: Any, state: dict[str, Tensor], optimizer_steps: int) -> None:
    """Give the engine the float32 masters and Adam's moments.

    The engine must have been built over the same weights: setting the masters alone would leave the forward weights stale.
    """
    prepare_optimizer_state(engine)
    for adam in engine.optimizer.optimizer.state.values():
        adam["step"].fill_(optimizer_steps)
    for name, parameter in engine.module.named_parameters():
        set_full(engine.optimizer, parameter, local_tensor(state[f"{WEIGHTS}/{name}"]), None)
        for moment in MOMENTS:
            set_full(engine.optimizer, parameter, local_tensor(state[f"{moment}/{name}"]), moment)


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
