"""Bytes that leave a node, worked out by hand for a model of round numbers."""

import pytest

from model.count import count_parameters
from trainer.compose import compose_config
from trainer.describe import leaving_rows
from trainer.errors import UserError
from trainer.traffic import estimate_leaving

MODEL = ["model=limoe_tiny", "model.width=64", "model.experts=8", "router.capacity_factor=1", "train.precision=bf16"]


def config(*overrides: str):
    return compose_config([*MODEL, "train.batch_size=64", *overrides])


def sizes() -> tuple[int, int]:
    """Bytes in bf16 of the dense layers and of the experts."""
    counts = count_parameters(config().model, config().router)
    return 2 * (counts.total - counts.experts), 2 * counts.experts


def exchanged() -> int:
    """Bytes of the slots of one of eight processes, there and back, forward and backward; at factor 1 one slot a token."""
    model = config().model
    return 4 * len(model.expert_layers) * 8 * (model.image_tokens + model.text_length) * 64 * 2


def test_experts_inside_a_node_send_no_tokens_out_of_it():
    leaving = estimate_leaving(config("parallel.expert_parallel=4"), world=8, local=4)
    dense, experts = sizes()
    assert leaving.tokens == 0
    assert leaving.synchronised == pytest.approx(3 * (dense + experts) / 2)


def test_experts_across_nodes_have_no_copies_to_add_up():
    leaving = estimate_leaving(config("parallel.expert_parallel=8"), world=8, local=4)
    dense, _ = sizes()
    assert leaving.tokens == pytest.approx(4 * exchanged() / 2)
    assert leaving.synchronised == pytest.approx(3 * dense / 2)


def test_experts_over_two_of_four_nodes():
    leaving = estimate_leaving(config("parallel.expert_parallel=4"), world=8, local=2)
    dense, experts = sizes()
    assert leaving.tokens == pytest.approx(2 * exchanged() / 2)
    assert leaving.synchronised == pytest.approx(3 * (dense * 3 / 4 + experts / 2 * 1 / 2))


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        (["parallel.zero_stage=2"], 3),
        (["parallel.zero_stage=3"], 3),
        (["train.accumulate=2"], 3),
        (["parallel.zero_stage=2", "train.accumulate=2"], 5),
        (["parallel.zero_stage=3", "train.accumulate=2"], 6),
        (["parallel.zero_stage=3", "train.activation_checkpointing=blocks"], 4),
    ],
)
def test_what_goes_around_by_stage(overrides: list[str], times: int):
    leaving = estimate_leaving(config("parallel.expert_parallel=8", *overrides), world=8, local=4)
    dense, _ = sizes()
    assert leaving.synchronised == pytest.approx(times * dense / 2)


def test_groups_that_begin_amid_a_node_are_refused():
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE=3: it should divide the 8 processes"):
        estimate_leaving(config("parallel.expert_parallel=4"), world=8, local=3)


def test_describe_tells_it_when_it_knows_the_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert leaving_rows(config(), 8) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    ((what, _),) = leaving_rows(config(), 8)
    assert what == "leaves a node of 4 processes in a step"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "four")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE=four"):
        leaving_rows(config(), 8)
