"""A trimmed model embeds what it still serves as the whole one does, to the last bit, and sends the rest elsewhere."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import BiasConfig, ModelConfig, RouterConfig
from model.errors import UserError
from model.limoe import LIMoE, expert_layers
from model.stream import MODALITIES, TEXT, join
from model.trim import Trim, trim
from tests.model.build import few, pairs, randomise, tiny

ROUTERS = {
    "softmax": RouterConfig(),
    "sigmoid": RouterConfig(gates="sigmoid"),
    "two choices": RouterConfig(top_k=2, priority="token"),
    "bias by modality": RouterConfig(bias=BiasConfig(kind="modality")),
}


def whole(config: ModelConfig, router: RouterConfig, seed: int = 0) -> LIMoE:
    """A float32 model, as it is used."""
    model = LIMoE(config, router).eval().requires_grad_(False)
    randomise(model, seed)
    for buffer in model.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)) / 4)
    return model


def copy(model: LIMoE, router: RouterConfig) -> LIMoE:
    again = LIMoE(model.config, router).eval().requires_grad_(False)
    again.load_state_dict(model.state_dict())
    return again


def inputs(config: ModelConfig, modality: str | None, count: int = 6) -> dict[str, Tensor]:
    images, texts = pairs(count, config, seed=3, dtype=torch.float32)
    return (
        {"images": images}
        if modality == "image"
        else {"texts": texts}
        if modality == "text"
        else {"images": images, "texts": texts}
    )


def chosen(model: LIMoE, given: dict[str, Tensor]) -> dict[int, Tensor]:
    """By layer, the choices of each valid token, `[n, K]`."""
    valid = [torch.ones(len(given["images"]) * model.config.image_tokens)] if "images" in given else []
    valid += [(given["texts"] != 0).flatten()] if "texts" in given else []
    return {layer: used.expert_nk[torch.cat(valid).bool()] for layer, used in model(**given).assignments.items()}


def rows(model: LIMoE, given: dict[str, Tensor]) -> Tensor:
    output = model(**given)
    return torch.cat([rows for rows in (output.images, output.texts) if rows is not None])


@pytest.mark.parametrize("modality", [*MODALITIES, None])
@pytest.mark.parametrize("name", ROUTERS)
def test_embeddings_are_the_same_without_experts_that_nothing_chose(name: str, modality: str | None):
    config = tiny(layers=3, expert_layers=[0, 2], experts=12, shared_experts=1)
    model = whole(config, ROUTERS[name])
    given = inputs(config, modality, count=2)
    used = {layer: tuple(expert_nk.unique().tolist()) for layer, expert_nk in chosen(model, given).items()}
    assert any(len(kept) < 12 for kept in used.values()), "nothing would be left out"
    trimmed = trim(copy(model, ROUTERS[name]), Trim(modality, used))
    assert torch.equal(rows(trimmed, given), rows(model, given))
    for layer, kept in used.items():
        assert trimmed.state_dict()[f"towers.0.blocks.{layer}.mlp.experts.up"].shape == (len(kept), 8, 12)


@few
@given(data=st.data(), granularity=st.sampled_from([1, 2]), top_k=st.sampled_from([1, 2]))
def test_any_experts_can_be_left_out(data: Any, granularity: int, top_k: int):
    """What was chosen and kept stays chosen; the others go to the best kept experts, as a plain loop finds them."""
    config = tiny(expert_granularity=granularity)
    router = RouterConfig(top_k=top_k)
    model = whole(config, router, seed=data.draw(st.integers(0, 5)))
    experts, choices = config.routed_experts, top_k * granularity
    kept = tuple(sorted(data.draw(st.sets(st.integers(0, experts - 1), min_size=choices))))
    given = inputs(config, None, count=3)
    trimmed = trim(copy(model, router), Trim(None, {1: kept}))
    before, after = chosen(model, given)[1], chosen(trimmed, given)[1]
    # The block before has no experts, so that both route the same tokens.
    recorded: list[Tensor] = []
    expert_layers(model)[1].router.register_forward_hook(lambda module, given, logits: recorded.append(logits))
    used = model(**given).assignments[1].expert_nk
    valid_n = torch.cat([torch.ones(3 * config.image_tokens).bool(), (given["texts"] != 0).flatten()])
    for logits, was, now in zip(recorded[0][valid_n].tolist(), before.tolist(), after.tolist(), strict=True):
        assert now == sorted(kept, key=lambda expert: -logits[expert])[:choices]
        assert now == was or not set(was) <= set(kept)
    assert len(used) == len(valid_n)


def test_a_token_without_its_expert_gets_the_kept_ones_original_gate():
    config, router = tiny(layers=1, expert_layers=[0]), RouterConfig()
    layer = expert_layers(whole(config, router))[0]
    x_nd = torch.randn(7, config.width, generator=torch.Generator().manual_seed(0))
    stream = join([(TEXT, x_nd[None], torch.ones(1, 7, dtype=torch.bool))])
    gates = layer.router(x_nd).softmax(-1)
    first = layer.experts(x_nd.expand(4, 7, -1))[2]
    layer.keep([2])
    y_nd, _ = layer(stream)
    torch.testing.assert_close(y_nd, gates[:, 2:3] * first)
    assert (gates[:, 2] < 0.9).any(), "renormalised gates would be 1"


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_only_the_other_modality_needs_is_left_out(modality: str, towers: int):
    config = tiny(towers=towers, expert_layers=[1] if towers == 1 else [])
    model = whole(config, RouterConfig())
    names = set(model.state_dict())
    trimmed = trim(copy(model, RouterConfig()), Trim(modality))
    other = ("text", "image")[MODALITIES.index(modality)]
    parts = {"image": ["patches.", "heads.image."], "text": ["tokens.", "heads.text."]}
    gone = [*parts[other], *([f"towers.{MODALITIES.index(other)}."] if towers == 2 else [])]
    assert set(trimmed.state_dict()) == {name for name in names if not name.startswith(tuple(gone))} != names
    given = inputs(config, modality)
    assert torch.equal(rows(trimmed, given), rows(model, given))
    with pytest.raises(UserError, match=f"^this export holds only {modality} .*: for {other}s, export the run without modality="):
        trimmed(**inputs(config, other))


def test_a_model_without_memory_can_be_trimmed_and_filled():
    config, router = tiny(), RouterConfig()
    kept = Trim("text", {1: (1, 3)})
    full = trim(whole(config, router), kept)
    empty = LIMoE.without_values(config, router).eval()
    trim(empty, kept).load_state_dict(full.state_dict(), assign=True)
    given = inputs(config, "text")
    assert torch.equal(rows(empty, given), rows(full, given))
    assert not any(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])


@pytest.mark.parametrize(
    ("router", "kept", "told"),
    [
        (RouterConfig(), {0: (0,)}, "block 0 is no expert layer; those are 1"),
        (RouterConfig(), {1: (0, 4)}, "from 0 to 3"),
        (RouterConfig(), {1: (-1,)}, "from 0 to 3"),
        (RouterConfig(), {1: (2, 1)}, "ascending"),
        (RouterConfig(), {1: (1, 1)}, "different"),
        (RouterConfig(), {1: ()}, "fewer than the 1"),
        (RouterConfig(top_k=2), {1: (3,)}, "fewer than the 2 that a token chooses"),
        (RouterConfig(choice="expert"), {1: (3,)}, "none can be left out"),
    ],
)
def test_what_cannot_be_left_out_is_refused(router: RouterConfig, kept: dict[int, tuple[int, ...]], told: str):
    with pytest.raises(ValueError, match=told):
        trim(LIMoE(tiny(), router), Trim(None, kept))


def test_what_is_left_is_written_as_plain_values():
    kept = Trim("text", {1: (0, 3), 3: (2,)})
    assert kept.plain() == {"modality": "text", "experts": {1: [0, 3], 3: [2]}}
    assert Trim.read(kept.plain()) == kept
    assert Trim.read({}) == Trim()
    for wrong in (["text"], {"modality": "sound"}, {"experts": [1]}, {"experts": {1: 2}}, {"towers": 1}):
        with pytest.raises((ValueError, TypeError)):
            Trim.read(wrong)
