"""Starting a model with experts from a dense run (model.upcycle): whether it can be done, the weights, and what was done."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from model.limoe import LIMoE
from model.upcycle import copies, dense_twin, upcycle
from trainer.checkpoint.identity import OF_EXPERTS, check_identity, compared_with
from trainer.checkpoint.load import load_state
from trainer.config.schema import Config
from trainer.engine.state import WEIGHTS, ExpertSharding
from trainer.errors import UserError


def upcycles(checkpoint: Path, config: Config) -> bool:
    """Whether the checkpoint's model is dense and the configuration's has experts."""
    was, wanted = compared_with(checkpoint, config).get("model.expert_layers", ([], []))
    return not was and bool(wanted)


def check_upcycling(checkpoint: Path, config: Config, otherwise: str) -> None:
    """Raise UserError when the experts of the configuration's model cannot start as copies of the checkpoint's MLPs.

    `otherwise`: what to do instead.
    """
    compared, model = compared_with(checkpoint, config), config.model
    if compared["model.towers"][0] == 2:
        raise UserError(
            f"checkpoint {checkpoint} has two towers, which cannot become the one tower of a model with experts: start from a "
            f"dense run with model.towers=1, or {otherwise}"
        )
    for key, value, plain in (
        ("model.expert_granularity", model.expert_granularity, 1),
        ("model.shared_experts", model.shared_experts, 0),
    ):
        if value != plain:
            raise UserError(
                f"{key}={value} cannot start from the dense run {checkpoint}: experts start as copies of whole MLPs, one for "
                f"each, and nothing else may be added to them; use {key}={plain}, or {otherwise}"
            )
    check_identity(checkpoint, config, otherwise, free=("model.expert_layers", *OF_EXPERTS))


def load_upcycled(checkpoint: Path, model: LIMoE, config: Config, sharding: ExpertSharding | None) -> None:
    """Give a new model the weights of a dense checkpoint. A collective.

    Each tensor is read by one rank and passed to the others. Raises UserError for a damaged checkpoint.
    """
    state = load_state(checkpoint, twin_of(config), sharding, (WEIGHTS,))
    upcycle(model, state.tensors(WEIGHTS), config.upcycle_noise, config.seed)


def twin_of(config: Config) -> LIMoE:
    """The dense twin of the configuration's model, without values."""
    with torch.device("meta"):
        return LIMoE(dense_twin(config.model), config.router)


def upcycling_rows(config: Config) -> list[tuple[str, str]]:
    """What an upcycled model takes from the dense one, what it multiplies, and what is new, as (what, value) rows."""
    with torch.device("meta"):
        model = LIMoE(config.model, config.router)
    copy_of = copies(model)
    dense, sparse = dict(twin_of(config).named_parameters()), dict(model.named_parameters())
    blocks = ", ".join(map(str, sorted(config.model.expert_layers)))
    noise = f", with noise of {config.upcycle_noise:g} standard deviations" if config.upcycle_noise else ""
    taken = [value for name, value in dense.items() if name not in copy_of]
    new = [value for name, value in sparse.items() if name not in dense and name not in copy_of.values()]
    return [
        ("taken as it is", f"{_count(taken)}: everything but the MLPs below"),
        (
            f"copied into {config.model.experts} experts each",
            f"{_count(dense[name] for name in copy_of)}: the MLPs of blocks {blocks}{noise}",
        ),
        ("new", f"{_count(new)}: the routers of blocks {blocks}; the optimizer"),
        ("at the start", _start(config)),
    ]


def _count(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors):,} parameters"


def _start(config: Config) -> str:
    """How far the function is the dense model's."""
    router = config.router
    if not router.normalise_gates:
        return (
            f"not the dense model: each expert's output is multiplied by its gate, which starts near "
            f"{0.5 if router.gates == 'sigmoid' else 1 / config.model.experts:.3g}; with router.normalise_gates=true it would be"
        )
    taken = "each token that an expert takes" if router.choice == "expert" else "each token that gets a slot"
    start = f"the dense model, for {taken}" if not config.upcycle_noise else f"near the dense model, for {taken}"
    if router.choice == "token" and router.top_k == 1:
        start += "; with router.top_k=1, normalised gates are all 1, and the router learns from the auxiliary losses alone"
    return start
