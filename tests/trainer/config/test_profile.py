"""The steps that train.profile names."""

import pytest
from omegaconf import OmegaConf

from trainer.config.checks import layout_problems
from trainer.config.compose import compose_config
from trainer.config.profile import check_profile, profiled_steps
from trainer.config.schema import TrainConfig
from trainer.errors import UserError


@pytest.mark.parametrize(("typed", "steps"), [(None, []), ("3:3", [3]), ("1:2", [1, 2]), (" 998 : 1000 ", [998, 999, 1000])])
def test_both_ends_are_steps_to_profile(typed: str | None, steps: list[int]):
    assert list(profiled_steps(TrainConfig(profile=typed))) == steps


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        *((typed, "write FIRST:LAST") for typed in ("x", "5", ":5", "5:", "1:2:3", "-1:2", "1.5:2", "1-2")),
        ("20:10", "use train.profile=10:20"),
        ("0:3", "use train.profile=1:3"),
        ("0:0", "use train.profile=1:1"),
        ("990:1001", "use train.profile=990:1000"),
        ("1001:1002", "use train.profile=1000:1000"),
    ],
)
def test_what_is_no_range_of_steps_is_refused_with_a_remedy_that_works(typed: str, told: str):
    with pytest.raises(UserError, match=f"train.profile={typed}.*{told}") as caught:
        profiled_steps(TrainConfig(profile=typed))
    if "use train.profile=" in told:
        assert profiled_steps(TrainConfig(profile=told.partition("=")[2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ranks", "world", "remedy"), [([0, 4], 2, [0]), ([7], 2, [0]), ([1, 2, 3], 3, [1, 2])])
def test_ranks_that_the_run_does_not_have_are_refused(ranks: list[int], world: int, remedy: list[int]):
    with pytest.raises(UserError, match=r"train\.profile_ranks") as caught:
        check_profile(TrainConfig(profile="1:2", profile_ranks=ranks), world)
    assert str(caught.value).endswith(f"use train.profile_ranks=[{','.join(map(str, remedy))}]")
    check_profile(TrainConfig(profile="1:2", profile_ranks=remedy), world)
    check_profile(TrainConfig(profile_ranks=ranks), world)  # nothing is profiled


def test_a_range_as_typed_survives_yaml_and_is_checked_before_a_run():
    """YAML reads 10:20 without quotes as the number 620, in the base 60."""
    config = compose_config(["train.profile=10:20", "train.profile_ranks=[0,1]"])
    written = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert written.train.profile == "10:20"
    assert not layout_problems(config, 2)
    config.train.profile_ranks = [5]
    config.parallel.expert_parallel = 1
    assert "train.profile_ranks names [5]" in "".join(layout_problems(config, 2).values())
    with pytest.raises(UserError, match=r'in quotes: "100:105"'):
        profiled_steps(TrainConfig(profile="620"))
