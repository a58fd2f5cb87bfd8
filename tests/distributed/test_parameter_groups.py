"""Every trainable parameter is in one optimizer group, and weight decay is on matrices only."""

import pytest

from model.limoe import LIMoE
from tests.distributed.setups import Layout, decays, tiny
from trainer.engine.build import mark_experts, parameter_groups


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout().with_(model__expert_layers=()), Layout().with_(model__expert_layers=(), model__towers=2)],
    ids=["experts", "dense", "two towers"],
)
def test_every_parameter_is_in_one_group_and_decays_if_it_is_a_matrix(layout):
    config = tiny(layout)
    model = LIMoE(config.model, config.router).initialise(0)
    if config.model.expert_layers:
        mark_experts(model, 1, 0)
    groups = parameter_groups(model, weight_decay=0.1, expert_parallel=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in groups:
        assert group["weight_decay"] in (0.0, 0.1)
        for name in (names[id(parameter)] for parameter in group["params"]):
            assert (group["weight_decay"] == 0.1) == decays(name), name
            assert group.get("moe", False) == (".experts." in name), name
    stacked_bias = [name for name in found if name.endswith(("up_bias", "down_bias"))]
    assert len(stacked_bias) == 2 * len(config.model.expert_layers)
    assert not any(map(decays, stacked_bias))
