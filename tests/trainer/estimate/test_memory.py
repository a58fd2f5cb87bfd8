"""The estimates against what a model really has, and against sums done by hand."""

import pytest
import torch

from model.freeze import freeze
from model.limoe import LIMoE
from model.objective import training_losses
from model.patch_dropout import draw_kept
from model.peers import SingleProcess
from trainer.config.compose import compose_config
from trainer.estimate.memory import (
    MOST_BUCKET_ELEMENTS,
    STATE_BYTES,
    bucket_elements,
    checkpoint_bytes,
    estimate_host_memory,
    estimate_memory,
    readable_bytes,
)
from trainer.estimate.rows import loss_rows

SMALL = ["model.width=64", "model.mlp=256", "model.patch=8", "train.batch_size=32", "train.precision=fp32"]


def counted(overrides: list[str]) -> tuple[int, int]:
    """All parameters and those of experts."""
    config = compose_config(overrides)
    model = LIMoE(config.model, config.router)
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    return sum(parameter.numel() for parameter in model.parameters()), experts


@pytest.mark.parametrize(
    ("stage", "weights", "kept"),
    [
        (1, lambda dense, own, all_: dense + own, lambda dense, own, all_: dense + own),
        (2, lambda dense, own, all_: dense + own, lambda dense, own, all_: all_ / 8),
        (3, lambda dense, own, all_: all_ / 8, lambda dense, own, all_: all_ / 8),
    ],
)
@pytest.mark.parametrize("grad_dtype", ["fp32", "bf16"])
def test_state_is_spread_as_zero_spreads_it(stage, weights, kept, grad_dtype):
    total, experts = counted(["model=limoe_tiny"])
    parts = (total - experts, experts / 2, total)
    config = compose_config(["parallel.expert_parallel=2", f"parallel.zero_stage={stage}", f"train.grad_dtype={grad_dtype}"])
    memory = estimate_memory(config, world=8)
    assert memory.weights == pytest.approx(2 * weights(*parts))
    each = 4 if grad_dtype == "fp32" else 2
    bucket = each if stage == 1 or each == 2 else 2 + 4  # as the gradients come, and as they are sent
    assert memory.gradients == pytest.approx(each * kept(*parts) + 4 * total / 8 + bucket * bucket_elements(config))
    assert memory.optimizer == pytest.approx(12 * total / 8)
    assert memory.total == memory.state + memory.activations


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=limoe_tiny"],
        ["model=dense_tiny"],
        ["model=limoe_tiny", "model.expert_granularity=2", "model.shared_experts=1"],
        ["model=limoe_tiny", "router=expert_choice"],
        ["model=limoe_tiny", "train.freeze=[patches.*,tokens.*,towers.0.blocks.0.*]"],
        ["model=two_tower_tiny", "train.freeze=[patches.*,towers.0.*]", "model.text_length=40"],
        ["model=limoe_tiny", "train.patch_dropout=0.5"],
    ],
    ids=" ".join,
)
def test_activations_are_about_what_a_forward_pass_keeps(overrides: list[str]):
    config = compose_config([*overrides, *SMALL])
    built = freeze(LIMoE(config.model, config.router).initialise(0).train(), config.train.freeze)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(32, 3, config.model.image_size, config.model.image_size)
    texts = torch.randint(3, config.model.vocabulary, (32, config.model.text_length))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        seen = draw_kept(0, 0, 32, config.model.image_tokens, config.trained_patches)
        losses = training_losses(
            built(images, texts, None, seen), config.router.aux, config.model.routed_experts, SingleProcess()
        )
    assert losses.total.requires_grad
    # The estimate has one more block, the one that the backward pass is in: a quarter here.
    assert 0.9 < estimate_memory(config, 1).activations / sum(kept.values()) < 1.6


FROZEN = ["model=limoe_tiny", "train.freeze=[towers.0.blocks.1.mlp.experts.*,tokens.*]"]


def test_what_is_frozen_has_neither_gradient_nor_moments():
    total, experts = counted(["model=limoe_tiny"])
    model = LIMoE(compose_config(FROZEN).model, compose_config(FROZEN).router)
    still_experts = sum(value.numel() for name, value in model.named_parameters() if ".1.mlp.experts." in name)
    still = still_experts + sum(value.numel() for value in model.tokens.parameters())
    trained, trained_experts = total - still, experts - still_experts
    for stage in (1, 3):
        config = compose_config([*FROZEN, "parallel.expert_parallel=2", f"parallel.zero_stage={stage}"])
        memory, all_trained = (
            estimate_memory(asked, world=8)
            for asked in (config, compose_config(["parallel.expert_parallel=2", f"parallel.zero_stage={stage}"]))
        )
        assert memory.weights == all_trained.weights
        assert memory.optimizer == pytest.approx(12 * trained / 8)
        own = trained - trained_experts + trained_experts / 2
        assert bucket_elements(config) == own
        bucket = 4 if stage == 1 else 2 + 4
        assert memory.gradients == pytest.approx(4 * (own if stage == 1 else trained / 8) + 4 * trained / 8 + bucket * own)
    assert checkpoint_bytes(config) == 12 * trained + 4 * still
    assert estimate_host_memory(compose_config(FROZEN), 1).checkpoint == checkpoint_bytes(config)


def test_a_moving_average_is_spread_like_the_optimizer():
    total, _ = counted(["model=limoe_tiny"])
    optimizer = [estimate_memory(compose_config(overrides), 8).optimizer for overrides in (["train.ema=0.999"], [])]
    assert optimizer[0] - optimizer[1] == pytest.approx(4 * total / 8)


def test_checkpointing_keeps_less_and_offloading_still_less():
    kept = [
        estimate_memory(compose_config(["model=limoe_b16", f"train.activation_checkpointing={how}"]), 1).activations
        for how in ("none", "blocks", "offload")
    ]
    assert kept[0] > 3 * kept[1] > 3 * kept[2] > 0


def test_pieces_need_what_their_micro_batch_needs_and_little_that_grows_with_the_batch():
    def activations(batch: int, accumulate: int, *more: str) -> float:
        sizes = [f"train.batch_size={batch}", f"train.accumulate={accumulate}"]
        return estimate_memory(compose_config(["model=limoe_b16", *sizes, *more]), 8).activations

    small, in_pieces, at_once = activations(512, 1), activations(16384, 32), activations(16384, 1)
    assert small < in_pieces < 1.2 * small < 0.1 * at_once
    assert activations(16384, 32, "train.negatives=micro") == pytest.approx(small)
    # Two float32 embeddings and their gradients of each pair, here and gathered; a token's 4 bytes a slot and 2 a choice.
    pairs, tokens = 512 // 8, 196 + 16
    left = 2 * 2 * 4 * 768 + 6 * tokens * (4 + 2)
    assert activations(1024, 16) - activations(512, 8) == pytest.approx(pairs * left + 512 * 2 * 2 * 4 * 768)


def test_the_logits_are_those_of_a_chunk_of_rows_and_of_one_block_of_the_ring():
    def activations(*changes: str) -> float:
        return estimate_memory(compose_config(["model=limoe_b16", "train.batch_size=8192", *changes]), 8).activations

    pairs, every = 1024, 8192
    saved = activations() - activations("train.loss_chunk=64")
    assert saved == pytest.approx(6 * 4 * (pairs - 64) * every - 3 * 2 * 4 * 768 * every)
    assert activations() - activations("model.loss=sigmoid") == pytest.approx(
        6 * 4 * pairs * every - 4 * 4 * pairs * pairs + 4 * 768 * (2 * every - 4 * pairs)
    )


def test_the_rows_tell_which_loss_it_is():
    config = compose_config(["model=limoe_b16", "train.batch_size=8192", "train.loss_chunk=64"])
    assert loss_rows(config, 8) == [
        ("contrastive loss", "softmax over 8,192 pairs; a process computes 64 rows of logits at a time")
    ]
    config.model.loss, config.train.loss_chunk = "sigmoid", None
    assert loss_rows(config, 8) == [
        ("contrastive loss", "sigmoid; a process computes 1,024 x 1,024 logits at a time, with the texts of 8 processes in turn")
    ]


def test_the_pairs_of_a_step_in_pieces_wait_in_host_memory():
    overrides = ["model=limoe_b16", "train.batch_size=1024", "train.accumulate=4"]
    assert estimate_host_memory(compose_config(overrides), 8).pairs == 128 * (3 * 224 * 224 + 8 * 16)
    assert estimate_host_memory(compose_config([*overrides, "train.negatives=micro"]), 8).pairs == 0


def test_a_checkpoint_has_a_weight_and_two_moments_of_each_parameter():
    total, _ = counted(["model=limoe_tiny"])
    assert checkpoint_bytes(compose_config([])) == STATE_BYTES * total == 12 * total
    assert checkpoint_bytes(compose_config(["train.ema=0.999"])) == 16 * total


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12 bytes"), (2048, "2.0 KiB"), (150 * 2**20, "150 MiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_bytes_are_told_with_their_unit(number: float, text: str):
    assert readable_bytes(number) == text


def test_the_buffer_of_gradients_is_no_larger_than_a_rank_has_of_them():
    small, large = compose_config(["model=limoe_tiny", "parallel.expert_parallel=2"]), compose_config(["model=limoe_h14"])
    total, experts = counted(["model=limoe_tiny"])
    assert bucket_elements(small) == total - experts // 2
    assert bucket_elements(large) == MOST_BUCKET_ELEMENTS
