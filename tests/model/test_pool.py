"""How tokens become one vector, and what a text's tokens see, where a model is not ours but CLIP's or SigLIP's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import RouterConfig
from model.limoe import LIMoE
from model.pool import AttentionPool, last_token, mean_token
from model.stream import TEXT, join
from model.trim import Trim, trim
from tests.model.build import assert_close, pairs, randomise, tiny

SIGLIP: dict[str, Any] = {"towers": 2, "expert_layers": [], "pool": "attention", "text_mask": "none", "head_bias": True}
CLIP: dict[str, Any] = {"towers": 2, "expert_layers": [], "pool": "token", "text_mask": "causal", "image_norm": True}


def embedder(**changes: Any) -> LIMoE:
    """A float64 model with random weights in evaluation mode."""
    made = LIMoE(tiny(**changes), RouterConfig().without_drops()).double().eval().requires_grad_(False)
    randomise(made, 3)
    return made


def test_the_last_valid_token_is_pooled_and_the_first_where_none_is():
    x = torch.arange(24.0).view(3, 4, 2)
    valid = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    assert torch.equal(last_token(x, valid), torch.stack([x[0, 1], x[1, 3], x[2, 0]]))
    assert torch.equal(mean_token(x, valid), torch.stack([x[0, :2].mean(0), x[1].mean(0), torch.zeros(2)]))


def test_attention_pools_as_torchs_own_attention_with_one_query():
    pool = AttentionPool(tiny(width=8, heads=2, mlp=12)).double()
    randomise(pool, 1)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
        theirs.out_proj.load_state_dict(pool.out.state_dict())
    x = torch.randn(5, 7, 8, dtype=torch.float64)
    y = theirs(pool.query.view(1, 1, 8).expand(5, 1, 8), x, x, need_weights=False)[0].squeeze(1)
    assert_close([pool(x)], [y + pool.mlp(pool.norm(y))], 1e-12)


def changed(texts: Tensor, place: int) -> Tensor:
    """The same texts with another token at a place, where there is one."""
    other = texts.clone()
    other[:, place] = torch.where(texts[:, place] > 0, texts[:, place] % 18 + 1, 0)
    return other


@pytest.mark.parametrize("mask", ["pads", "causal", "none"])
def test_what_a_token_of_a_text_sees(mask: str):
    """The first token is asked, by a model that would pool it alone."""
    model = embedder(text_mask=mask, expert_layers=[], image_norm=False)
    _, texts = pairs(6, model.config)
    texts = torch.cat([texts[:, :3].clamp(min=1), torch.zeros(6, 2, dtype=torch.int64)], 1)
    padded_otherwise = embedder(text_mask=mask, expert_layers=[])
    with torch.no_grad():
        padded_otherwise.tokens.table.weight[0, 0] += 1.0

    def first(of: LIMoE, ids: Tensor) -> Tensor:
        stream = of.towers[0](join([(TEXT, *of.tokens(ids))]))[0]
        return stream.x_nd.view(6, 5, -1)[:, 0]

    sees_later = not torch.allclose(first(model, texts), first(model, changed(texts, 2)), atol=1e-9)
    sees_pads = not torch.allclose(first(model, texts), first(padded_otherwise, texts), atol=1e-9)
    assert (sees_later, sees_pads) == {"pads": (True, False), "causal": (False, False), "none": (True, True)}[mask]


@pytest.mark.parametrize("changes", [CLIP | {"text_width": 6, "text_heads": 3, "text_layers": 1, "text_mlp": 10}, SIGLIP])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_model_that_lost_a_modality_embeds_the_other_as_before(changes: dict[str, Any], modality: str):
    whole, left = embedder(**changes), trim(embedder(**changes), Trim(modality))
    images, texts = pairs(4, whole.config)
    given = {"images": images} if modality == "image" else {"texts": texts}
    before, after = whole(images, texts), left(**given)
    assert torch.equal(*((before.images, after.images) if modality == "image" else (before.texts, after.texts)))
    assert not [name for name in left.state_dict() if name.startswith("pool.")] or modality == "image"
    assert sum(map(torch.numel, left.parameters())) < sum(map(torch.numel, whole.parameters()))


def test_a_class_token_takes_part_in_a_mixture_of_experts():
    model = embedder(pool="token", image_norm=True).train()
    images, texts = pairs(4, model.config)
    output = model(images, texts)
    assert model.config.image_tokens == model.config.image_patches + 1 == 5
    assert output.assignments[1].expert_nk.shape[0] == 4 * (5 + 5)
