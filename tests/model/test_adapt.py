"""Weights fitted to other images, patches, texts and blocks: exact where they can be, and near where they cannot."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.adapt import Adaptation, check_blocks, resize_patches, resize_positions, same_blocks
from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.upcycle import upcycle
from tests.model.build import assert_close, model, pairs, randomise, tiny

CONFIG = tiny(layers=3, expert_layers=[1], image_size=16, patch=4, text_length=8)


def trained(config: ModelConfig = CONFIG) -> LIMoE:
    """With values that no fresh model has."""
    made = model(config)
    randomise(made, 7)
    return made.eval()


def fitted(config: ModelConfig, blocks: tuple[int | None, ...] = same_blocks(3), same_pieces: bool = True) -> LIMoE:
    """A model that starts from `trained`."""
    made = model(config, seed=1)
    adaptation = Adaptation(CONFIG, config, blocks, same_pieces)
    upcycle(made, adaptation.tensors(trained().state_dict().items(), made.state_dict()), 0.0, 0)
    return made.eval()


def test_chosen_blocks_are_those_of_both_towers_only_if_these_are_as_deep() -> None:
    source = tiny(towers=2, layers=3, expert_layers=[])
    name = "towers.{}.blocks.{}.norm1.bias"
    for changes, of_texts in (({}, [0, 2]), ({"text_layers": 3}, [1])):
        adaptation = Adaptation(source, replace(source, layers=4, **changes), (1, 0, 1, None))
        assert adaptation.names(name.format(0, 1)) == [name.format(0, index) for index in (0, 2)]
        assert adaptation.names(name.format(1, 1)) == [name.format(1, index) for index in of_texts]


def test_one_tower_of_two_is_that_of_the_images_and_what_fits_of_the_texts() -> None:
    two = tiny(towers=2, layers=3, expert_layers=[], image_size=16, patch=4, text_length=8)
    source = model(two, seed=5).eval()
    one = replace(two, towers=1)
    made = model(one, seed=1).eval()
    fresh = {name: value.clone() for name, value in made.state_dict().items()}
    adaptation = Adaptation(two, one, same_blocks(3))
    assert not adaptation.changes_nothing
    upcycle(made, adaptation.tensors(source.state_dict().items(), made.state_dict()), 0.0, 0)
    images, _ = pairs(4, two)
    assert torch.equal(made(images).images, source(images).images)
    assert torch.equal(made.tokens.table.weight, source.tokens.table.weight)
    assert torch.equal(made.heads["text"].weight, fresh["heads.text.weight"])
    narrow = Adaptation(replace(two, text_width=4), one, same_blocks(3))
    assert narrow.names("tokens.table.weight") == narrow.names("towers.1.norm.bias") == []


@pytest.mark.parametrize("patch", [8, 6, 16])
def test_enlarged_patches_are_embedded_as_before(patch: int) -> None:
    before, weight = torch.rand(5, 3, 4, 4, dtype=torch.float64), torch.randn(6, 48, dtype=torch.float64)
    after = F.interpolate(before, size=(patch, patch), mode="bilinear", align_corners=False)
    assert_close([after.flatten(1) @ resize_patches(weight, patch).T], [before.flatten(1) @ weight.T], 1e-10)


def test_smaller_patches_are_the_nearest_in_the_mean_square() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 48, dtype=torch.float64)
    pictures = torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)  # as many as there are pixels: white noise on average
    small = F.interpolate(pictures, size=(2, 2), mode="bilinear", antialias=True, align_corners=False).flatten(1)
    best = torch.linalg.lstsq(small, pictures.flatten(1) @ weight.T).solution.T
    assert_close([resize_patches(weight, 2)], [best], 1e-9)


def test_positions_keep_a_linear_pattern_and_the_order_of_rows_and_columns() -> None:
    row, column = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    resized = resize_positions(torch.stack([row, 2 * column], -1).view(64, 2), 16).view(16, 16, 2)
    inner = resized[4:12, 4:12]
    steps_down, steps_right = inner.diff(dim=0), inner.diff(dim=1)
    assert_close([steps_down[..., 0], steps_right[..., 1]], [torch.full((7, 8), 1 / 14), torch.full((8, 7), 2 / 14)], 1e-5)
    assert steps_down[..., 1].abs().max() < 1e-6 and steps_right[..., 0].abs().max() < 1e-6


def test_a_larger_image_of_larger_patches_is_the_same_picture() -> None:
    images, _ = pairs(4, CONFIG)
    by_patch = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 1, 4, 4)
    larger = F.interpolate(by_patch, size=(8, 8), mode="bilinear", align_corners=False).view(4, 3, 4, 4, 8, 8)
    larger = larger.transpose(3, 4).reshape(4, 3, 32, 32)
    after = fitted(replace(CONFIG, image_size=32, patch=8))(larger)
    assert_close([after.images], [trained()(images).images], 1e-5)


@pytest.mark.parametrize("length", [6, 12])
def test_a_short_text_is_embedded_as_before_whatever_the_longest(length: int) -> None:
    _, texts = pairs(4, CONFIG)
    texts = F.pad(texts[:, :5], (0, 3))
    longer = F.pad(texts, (0, 4))[:, :length]
    after = fitted(replace(CONFIG, text_length=length))(texts=longer)
    assert_close([after.texts], [trained()(texts=texts).texts], 1e-6)


def test_a_larger_table_keeps_the_pieces_it_had_and_another_tokenizer_gets_a_new_one() -> None:
    source, larger = trained(), replace(CONFIG, vocabulary=CONFIG.vocabulary + 7)
    table = fitted(larger).tokens.table.weight
    assert torch.equal(table[: CONFIG.vocabulary], source.tokens.table.weight)
    fresh = model(larger, seed=1)
    assert torch.equal(table[CONFIG.vocabulary :], fresh.tokens.table.weight[CONFIG.vocabulary :])
    assert torch.equal(fitted(larger, same_pieces=False).tokens.table.weight, fresh.tokens.table.weight)


@pytest.mark.parametrize(("before", "after"), [("softmax", "sigmoid"), ("sigmoid", "softmax"), ("sigmoid", "sigmoid")])
def test_another_loss_starts_with_new_logits_and_the_same_embeddings(before: str, after: str) -> None:
    config, target = replace(CONFIG, loss=before), replace(CONFIG, loss=after, initial_scale=3.0, initial_bias=-7.0)
    source, made = trained(config), model(target, seed=1)
    adaptation = Adaptation(config, target, same_blocks(3))
    upcycle(made, adaptation.tensors(source.state_dict().items(), made.state_dict()), 0.0, 0)
    taken, found = (net.eval()(*pairs(3, CONFIG)) for net in (source, made))
    assert torch.equal(found.images, taken.images) and torch.equal(found.texts, taken.texts)
    assert adaptation.changes_nothing == (before == after)
    if before == after:
        assert found.scale == taken.scale and found.bias == taken.bias
    else:
        assert found.scale.item() == pytest.approx(3.0) and (found.bias == -7.0 if after == "sigmoid" else found.bias is None)


def test_blocks_come_from_where_they_are_said_to() -> None:
    source, target = trained(), replace(CONFIG, layers=4, expert_layers=[0, 2])
    made = fitted(target, (1, 0, 1, None))
    fresh = model(target, seed=1)
    for own, start in ((0, 1), (1, 0), (2, 1)):
        before, after = source.towers[0].blocks[start].state_dict(), made.towers[0].blocks[own].state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    new = fresh.towers[0].blocks[3].state_dict()
    assert all(torch.equal(made.towers[0].blocks[3].state_dict()[name], value) for name, value in new.items())


def test_fewer_blocks_are_the_model_cut_short() -> None:
    images, texts = pairs(3, CONFIG)
    source = trained()
    cut = fitted(replace(CONFIG, layers=2), (0, 1))
    source.towers[0].blocks = source.towers[0].blocks[:2]
    assert_close([cut(images, texts).images], [source(images, texts).images], 1e-6)


def test_a_dense_block_becomes_experts_where_it_lands() -> None:
    target = replace(CONFIG, layers=3, expert_layers=[0, 1])
    router = RouterConfig(normalise_gates=True, capacity_factor=float(CONFIG.experts))
    made = model(target, router, seed=1)
    upcycle(made, Adaptation(CONFIG, target, (2, 1, 0)).tensors(trained().state_dict().items(), made.state_dict()), 0.0, 0)
    mlp, experts = trained().towers[0].blocks[2].mlp, made.towers[0].blocks[0].mlp.experts
    assert all(torch.equal(expert, mlp.up.weight.T) for expert in experts.up)


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [((0, 1), "names 2 blocks"), ((0, 1, 3), "no block 3, only 0 to 2"), ((1, 1, None), "block 0 would"), ((2, None, 0), None)],
)
def test_blocks_that_do_not_fit(blocks: tuple[int | None, ...], problem: str | None) -> None:
    found = check_blocks(blocks, CONFIG, CONFIG)
    assert found is None if problem is None else problem in (found or "")
