"""First values: one model whatever the layout, spread as documented."""

import math

import pytest
import torch

from model.config import RouterConfig
from model.experts import Experts
from model.limoe import LIMoE
from tests.model.build import Meeting, ThreadPeers, tiny

CONFIG = tiny(width=64, mlp=96, experts=4, vocabulary=200, embedding=48, image_size=16, layers=3, expert_layers=[0, 2])


def _model(seed: int = 0, world: int = 1, rank: int = 0) -> LIMoE:
    return LIMoE(CONFIG, RouterConfig(), ThreadPeers(Meeting(world), rank)).initialise(seed)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_side_by_side_are_the_model_of_one_process(world: int) -> None:
    whole = _model()
    parts = [dict(_model(world=world, rank=rank).named_parameters()) for rank in range(world)]
    modules = dict(whole.named_modules())
    for name, parameter in whole.named_parameters():
        if isinstance(modules[name.rpartition(".")[0]], Experts):
            assert torch.equal(torch.cat([part[name] for part in parts]), parameter)
        else:
            assert all(torch.equal(part[name], parameter) for part in parts)


def test_a_seed_decides_everything_and_the_global_generator_nothing() -> None:
    torch.manual_seed(1)
    one = _model(seed=7).state_dict()
    torch.manual_seed(2)
    other = _model(seed=7).state_dict()
    different = _model(seed=8).state_dict()
    for name, value in one.items():
        assert torch.equal(value, other[name])
        drawn = not (name.endswith("bias") or "norm" in name or name.endswith("log_scale"))
        assert torch.equal(value, different[name]) != drawn, name


def test_no_two_tensors_and_no_two_experts_start_alike() -> None:
    drawn = []
    for name, parameter in _model().named_parameters():
        if name.endswith((".up", ".down")):
            drawn += [expert.flatten()[:32] for expert in parameter]
        elif parameter.ndim == 2 and not name.endswith("bias"):
            drawn.append(parameter.flatten()[:32])
    normalised = torch.stack([values / values.norm() for values in drawn])
    likeness = (normalised @ normalised.T).fill_diagonal_(0)
    assert len(drawn) > 20 and likeness.abs().max() < 0.9


def test_spread() -> None:
    expected = {
        "patches.project.weight": 1 / math.sqrt(3 * 2 * 2),
        "patches.position": 0.02,
        "tokens.table.weight": 0.02,
        "tokens.position": 0.02,
        "towers.0.blocks.0.attention.qkv.weight": 1 / math.sqrt(64),
        "towers.0.blocks.0.attention.out.weight": 1 / math.sqrt(64),
        "towers.0.blocks.0.mlp.router.weight": 1 / math.sqrt(64),
        "towers.0.blocks.0.mlp.experts.up": 1 / math.sqrt(64),
        "towers.0.blocks.0.mlp.experts.down": 1 / math.sqrt(96),
        "towers.0.blocks.1.mlp.up.weight": 1 / math.sqrt(64),
        "towers.0.blocks.1.mlp.down.weight": 1 / math.sqrt(96),
        "heads.image.weight": 1 / math.sqrt(64),
        "heads.text.weight": 1 / math.sqrt(64),
    }
    values = {name: parameter.detach() for name, parameter in _model().named_parameters()}
    for name, std in expected.items():
        tolerance = 4 / math.sqrt(values[name].numel())
        assert values[name].std().item() == pytest.approx(std, rel=tolerance), name
        assert abs(values[name].mean().item()) < std * tolerance, name
        assert values[name].abs().max().item() <= 2 * std / 0.8796 + 1e-6, name
    for name, value in values.items():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name:
            assert (value == 1).all(), name
