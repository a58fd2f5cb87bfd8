"""Factors on the learning rate: which parameter has which, and what is said of a pattern that fits none."""

import pytest

from model.limoe import LIMoE
from tests.distributed.setups import tiny
from trainer.config.checks import check_layout
from trainer.config.compose import compose_config
from trainer.engine.rates import rate_factors
from trainer.errors import UserError


def factors(*overrides: str) -> dict[str, float]:
    """Those of a model of three blocks."""
    config = tiny()
    config.optim = compose_config(list(overrides)).optim
    return rate_factors(LIMoE(config.model, config.router), config.optim)


def test_all_are_one_unless_something_else_is_asked_for() -> None:
    assert set(factors().values()) == {1.0}


def test_the_first_pattern_that_fits_counts() -> None:
    found = factors("optim.lr_factors={towers.0.blocks.0.*:0.1,towers.*:0.5,*.log_scale:0}")
    assert found["towers.0.blocks.0.attention.qkv.weight"] == 0.1
    assert found["towers.0.blocks.1.mlp.experts.up"] == found["towers.0.norm.bias"] == 0.5
    assert found["scale.log_scale"] == 0.0
    assert found["heads.text.weight"] == found["patches.position"] == 1.0


def test_the_rate_decays_from_layer_to_layer() -> None:
    found = factors("optim.layer_decay=0.5", "optim.lr_factors={heads.*:2}")
    assert found["tokens.table.weight"] == found["patches.project.bias"] == 0.5**4
    assert [found[f"towers.0.blocks.{block}.norm1.weight"] for block in range(3)] == [0.125, 0.25, 0.5]
    assert found["towers.0.norm.weight"] == 1.0
    assert found["heads.image.weight"] == 2.0


def test_each_tower_decays_from_its_own_top() -> None:
    config = tiny()
    config.model.towers, config.model.expert_layers, config.model.text_layers = 2, [], 1
    config.optim.layer_decay = 0.5
    found = rate_factors(LIMoE.without_values(config.model, config.router), config.optim)
    assert found["towers.1.blocks.0.norm1.weight"] == found["towers.0.blocks.2.norm1.weight"] == 0.5
    assert (found["tokens.position"], found["patches.position"]) == (0.5**2, 0.5**4)


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"optim.lr_factors: no parameter has a name like 'tower\.\*'; there are patches\.\*"
    ) as caught:
        factors("optim.lr_factors={tower.*:0.1}")
    assert "\n" not in str(caught.value)


def test_a_factor_below_zero_is_refused() -> None:
    config = compose_config(["optim.lr_factors={towers.*:-1}"])
    with pytest.raises(UserError, match=r"optim.lr_factors={'towers.\*': -1} must be at least 0"):
        check_layout(config, 1)


@pytest.mark.parametrize("value", ["3", "{towers.*:fast}", "[1,2]", "{a:{b:1}}"])
def test_what_is_no_number_by_pattern_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"optim.lr_factors=.* must be numbers by pattern, as in {towers"):
        check_layout(compose_config([f"optim.lr_factors={value}"]), 1)
