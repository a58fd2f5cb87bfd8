"""Bytes that a process sends and that leave a node, worked out by hand for a model of round numbers."""

import pytest

from model.count import count_parameters
from trainer.config.compose import compose_config
from trainer.errors import UserError
from trainer.estimate.memory import local_pairs
from trainer.estimate.rows import leaving_rows
from trainer.estimate.traffic import estimate_leaving, estimate_sent

MODEL = [
    "model=limoe_tiny",
    "model.width=64",
    "model.experts=8",
    "router.capacity_factor=1",
    "train.precision=bf16",
    "train.grad_dtype=bf16",
]


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
        (["parallel.zero_stage=3", "train.accumulate=2", "train.negatives=micro"], 6),
        (["parallel.zero_stage=3", "train.accumulate=2"], 8),  # the weights of a piece's first pass too
        (["parallel.zero_stage=3", "train.activation_checkpointing=blocks"], 4),
    ],
)
def test_what_goes_around_by_stage(overrides: list[str], times: int):
    leaving = estimate_leaving(config("parallel.expert_parallel=8", *overrides), world=8, local=4)
    dense, _ = sizes()
    assert leaving.synchronised == pytest.approx(times * dense / 2)


@pytest.mark.parametrize(("stage", "bytes_each"), [(1, 2 * 4 + 2), (2, 2 * 4 + 2), (3, 4 + 2 * 2)])
def test_float32_gradients_send_twice_the_bytes_and_weights_do_not(stage: int, bytes_each: int):
    whole = config("parallel.expert_parallel=8", f"parallel.zero_stage={stage}", "train.grad_dtype=fp32")
    dense, _ = sizes()
    assert estimate_leaving(whole, world=8, local=4).synchronised == pytest.approx(bytes_each * dense / 2 / 2)


@pytest.mark.parametrize("stage", [1, 3])
def test_what_is_frozen_has_no_gradient_to_send(stage: int):
    """Nor a new weight, but in stage 3 all weights go around in every pass; and tokens are sent in the forward pass alone."""
    everywhere = ["parallel.expert_parallel=8", f"parallel.zero_stage={stage}"]
    model = config().model
    below = ["patches.*", "tokens.*", f"towers.0.blocks.[0-{model.expert_layers[0]}].*"]
    frozen = config(*everywhere, f'train.freeze=["{below[0]}","{below[1]}","{below[2]}"]')
    counts = count_parameters(frozen.model, frozen.router, below)
    trained, dense = 2 * (counts.trained - counts.trained_experts), 2 * (counts.total - counts.experts)
    assert 0 < trained < dense
    leaving, before = (estimate_leaving(asked, world=8, local=4) for asked in (frozen, config(*everywhere)))
    assert leaving.synchronised == pytest.approx((3 * trained if stage == 1 else trained + 2 * dense) / 2)
    assert leaving.tokens == pytest.approx(before.tokens * (1 - 0.5 / len(model.expert_layers)))


def test_groups_that_begin_amid_a_node_are_refused():
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE=3 must divide the 8 processes"):
        estimate_leaving(config("parallel.expert_parallel=4"), world=8, local=3)


def test_describe_tells_it_when_it_knows_the_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert leaving_rows(config(), 8) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    ((what, _),) = leaving_rows(config(), 8)
    assert what == "leaves a node of 4 processes per step"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "four")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE=four"):
        leaving_rows(config(), 8)


def test_a_step_sends_each_token_there_and_back_in_every_pass():
    built = compose_config(["model=limoe_b16", "parallel.expert_parallel=8", "train.batch_size=512", "train.accumulate=2"])
    pairs = local_pairs(built, 8)
    assert pairs == 32
    tokens = pairs * (196 + 16)  # a capacity factor of 1: as many slots as tokens
    sent = estimate_sent(built, 8)
    assert sent.tokens == pytest.approx(2 * 6 * 6 * tokens * 768 * 2 * 7 / 8)
    built.train.negatives = "micro"
    assert estimate_sent(built, 8).tokens == pytest.approx(2 * 6 * 4 * tokens * 768 * 2 * 7 / 8)
    assert sent.embeddings == pytest.approx(2 * 2 * pairs * 2 * 768 * 4 * 7)
    built.model.loss = "sigmoid"  # the texts and their gradients go once round
    assert estimate_sent(built, 8).embeddings == pytest.approx(2 * pairs * 2 * 768 * 4 * 8)
    recomputed = compose_config(["model=limoe_b16", "parallel.expert_parallel=8", "train.activation_checkpointing=blocks"])
    stored = compose_config(["model=limoe_b16", "parallel.expert_parallel=8"])
    assert estimate_sent(recomputed, 8).tokens == pytest.approx(1.5 * estimate_sent(stored, 8).tokens)


@pytest.mark.parametrize(("stage", "accumulate", "times"), [(1, 1, 3), (1, 4, 3), (2, 4, 9), (3, 1, 3), (3, 4, 16)])
def test_zero_sends_weights_and_gradients(stage: int, accumulate: int, times: int):
    built = compose_config(
        ["model=dense_tiny", f"parallel.zero_stage={stage}", f"train.accumulate={accumulate}", "train.grad_dtype=bf16"]
    )
    total = count_parameters(built.model, built.router).total
    assert estimate_sent(built, 4).synchronised == pytest.approx(times * 2 * total * 3 / 4)


def test_one_process_sends_nothing():
    for loss in ("softmax", "sigmoid"):
        sent = estimate_sent(compose_config([f"model.loss={loss}"]), 1)
        assert (sent.tokens, sent.synchronised, sent.embeddings) == (0, 0, 0)
