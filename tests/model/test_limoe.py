"""The whole model: embeddings, towers, logit scale, objective."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.auxiliary import auxiliary_loss
from model.block import Block, Encoder
from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE, LogitScale
from model.mlp import MLP
from model.objective import training_losses
from model.peers import SingleProcess
from model.stream import IMAGE, MODALITIES, TEXT, join
from tests.model import reference
from tests.model.build import assert_close, few, gradients, model, pairs, randomise, tiny

DENSE = tiny(expert_layers=[])
FAMILY = {"limoe": tiny(), "one tower": DENSE, "two towers": tiny(expert_layers=[], towers=2)}
family = pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())


def _embed(net: LIMoE, images: torch.Tensor, texts: torch.Tensor) -> list[torch.Tensor]:
    output = net(images, texts)
    assert output.images is not None and output.texts is not None
    return [output.images, output.texts]


@family
def test_embeddings_have_norm_one(config: ModelConfig) -> None:
    for embedding in _embed(model(config), *pairs(5, config)):
        assert embedding.shape == (5, config.embedding)
        assert_close([embedding.norm(dim=-1)], [torch.ones(5, dtype=torch.float64)])


@family
@few
@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), top_k=st.integers(1, 2))
def test_an_embedding_does_not_depend_on_what_rides_in_its_batch(config: ModelConfig, seed: int, count: int, top_k: int) -> None:
    router = RouterConfig(top_k=top_k, capacity_factor=0.1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        net = LIMoE(config, router)
        randomise(net, seed)
        net = net.to(dtype).eval()
        images, texts = pairs(count, config, seed, dtype)
        with torch.no_grad():
            together = _embed(net, images, texts)
            alone = [_embed(net, images[i : i + 1], texts[i : i + 1]) for i in range(count)]
            assert_close([torch.cat(rows) for rows in zip(*alone, strict=True)], together, tolerance)
            only_images, only_texts = net(images=images), net(texts=texts)
            assert only_images.texts is None and only_texts.images is None
            assert_close([only_images.images, only_texts.texts], together, tolerance)


def test_a_tight_capacity_does_make_the_batch_matter() -> None:
    """The control of the test above: it would notice an embedding that depends on its batch."""
    net = LIMoE(tiny(), RouterConfig(eval_capacity_factor=0.1))
    randomise(net, 0)
    images, texts = pairs(6, tiny(), 0, torch.float32)
    net.eval()
    together, alone = (
        torch.cat(_embed(net, images, texts)),
        torch.cat([torch.cat(_embed(net, images[i : i + 1], texts[i : i + 1])) for i in range(6)]),
    )
    assert not torch.allclose(together, torch.cat([alone[0::2], alone[1::2]]), atol=1e-2)


@family
@few
@given(seed=st.integers(0, 10_000))
def test_pads_and_padding_length_change_nothing(config: ModelConfig, seed: int) -> None:
    net = model(config, RouterConfig(noise=0.0), seed=seed)
    randomise(net, seed)
    images, texts = pairs(4, config, seed)
    texts[:, -1] = 0
    texts[:, 0] = 1
    outputs = _embed(net, images, texts)
    (grad_vd,) = gradients((torch.cat(outputs).square() @ torch.arange(6.0).double()).sum(), [net.tokens.table.weight])
    assert (grad_vd[0] == 0).all() and (grad_vd[1] != 0).any()
    with torch.no_grad():
        net.tokens.table.weight[0] = 70.0
    assert_close(_embed(net, images, texts), outputs)
    assert_close(_embed(net.eval(), images, texts[:, :-1]), _embed(net, images, texts))


@family
def test_a_text_of_pads_only_is_finite_and_so_are_all_gradients(config: ModelConfig) -> None:
    router = RouterConfig()
    net = LIMoE(config, router).initialise(0)
    images, texts = pairs(4, config, dtype=torch.float32)
    texts[2] = 0
    losses = training_losses(net(images, texts), router.aux, config.experts, SingleProcess())
    losses.total.backward()
    assert losses.total.isfinite()
    for parameter in net.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@family
@pytest.mark.parametrize("modality", ["images", "texts"])
def test_a_modality_alone_gives_finite_auxiliary_losses(config: ModelConfig, modality: str) -> None:
    net = model(config)
    images, texts = pairs(3, config)
    output = net(images=images) if modality == "images" else net(texts=texts)
    (embedding,) = [value for value in (output.images, output.texts) if value is not None]
    losses = torch.stack([embedding.sum(), *(sums.sum() for sums in output.routing.values())]).sum()
    assert all(grad.isfinite().all() for grad in gradients(losses, list(net.parameters())))
    with pytest.raises(ValueError, match="both images and texts"):
        training_losses(output, RouterConfig().aux, config.experts, SingleProcess())


def test_pooling_is_the_average_of_a_modalitys_valid_tokens() -> None:
    net = model(DENSE)
    randomise(net, 1)
    tower = net.towers[0]
    assert isinstance(tower, Encoder)
    images, texts = pairs(3, DENSE)
    x, valid = net.tokens(texts)
    assert torch.equal(valid, texts != 0)
    for embedding, sequence, kept, head in (
        (_embed(net, images, texts)[1], x, valid, net.heads["text"]),
        (_embed(net, images, texts)[0], *net.patches(images), net.heads["image"]),
    ):
        for row, x_ld, valid_l in zip(embedding, sequence, kept, strict=True):
            # Each sequence by itself and without pads.
            x_ld = x_ld[valid_l]
            for block in tower.blocks:
                assert isinstance(block, Block) and isinstance(block.mlp, MLP)
                q, k, v = block.attention.qkv(block.norm1(x_ld)).unflatten(1, (3, 2, 4)).permute(1, 2, 0, 3)
                seen = (q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v
                x_ld = x_ld + block.attention.out(seen.transpose(0, 1).flatten(1))
                x_ld = x_ld + block.mlp.down(reference.gelu(block.mlp.up(block.norm2(x_ld))))
            projected = head.weight @ reference.mean(list(tower.norm(x_ld)))
            assert_close([row], [projected / projected.norm()])


def test_features_are_what_is_projected() -> None:
    net = model(DENSE)
    images, texts = pairs(3, DENSE)
    output = net(images, texts)
    assert set(output.features) == {IMAGE, TEXT}
    for modality, embedding in ((IMAGE, output.images), (TEXT, output.texts)):
        features_bd = output.features[modality]
        assert features_bd.shape == (3, DENSE.width)
        projected = features_bd @ net.heads[MODALITIES[modality]].weight.T
        assert_close([embedding], [projected / projected.norm(dim=-1, keepdim=True)])


def test_patches_are_cut_row_by_row() -> None:
    net = model(DENSE)
    image = torch.arange(3 * 4 * 4.0, dtype=torch.float64).view(1, 3, 4, 4)
    expected: list[torch.Tensor] = []
    for top, left in ((0, 0), (0, 2), (2, 0), (2, 2)):
        pixels = [image[0, c, top + i, left + j] for c in range(3) for i in range(2) for j in range(2)]
        expected.append(net.patches.project(torch.stack(pixels)) + net.patches.position[len(expected)])
    x, valid = net.patches(image)
    assert_close([x], [torch.stack(expected).unsqueeze(0)])
    assert valid.all() and valid.shape == (1, 4)


def test_one_tower_is_shared_and_two_are_not() -> None:
    images, texts = pairs(3, DENSE)
    for towers, shared in ((1, True), (2, False)):
        net = model(tiny(expert_layers=[], towers=towers))
        assert len(net.towers) == towers
        image_loss, text_loss = (embedding[:, 0].sum() for embedding in _embed(net, images, texts))
        for index, tower in enumerate(net.towers):
            parameters = [parameter for name, parameter in tower.named_parameters() if "qkv.bias" not in name]
            by_image, by_text = (all(grad.any() for grad in gradients(loss, parameters)) for loss in (image_loss, text_loss))
            assert (by_image, by_text) == ((True, True) if shared else (index == 0, index == 1))


@family
def test_the_encoder_is_not_told_the_modality(config: ModelConfig) -> None:
    """The same vectors labelled as the other modality come out the same: labels serve statistics only."""
    tower = model(config, RouterConfig(noise=0.0)).towers[0]
    x_nd = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 4, dtype=torch.bool)
    image, text = (tower(join([(modality, x_nd.view(3, 4, 8), valid)]))[0].x_nd for modality in (IMAGE, TEXT))
    assert_close([image], [text])


def test_the_scale_starts_at_ten_whatever_the_family_and_is_configurable() -> None:
    for config, expected in ((DENSE, 10.0), (tiny(), 10.0), (tiny(initial_scale=14.3), 14.3)):
        scale = LIMoE(config, RouterConfig()).initialise(0).scale()
        assert scale.shape == () and scale.dtype == torch.float32
        assert scale.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "expected", "up", "down"),
    [(50.0, 50.0, True, True), (100.0, 100.0, False, True), (150.0, 100.0, False, True)],
)
def test_the_scale_is_at_most_100_and_can_come_down_from_there(value: float, expected: float, up: bool, down: bool) -> None:
    scale = LogitScale().double()
    with torch.no_grad():
        scale.log_scale.fill_(math.log(value))
    assert scale().item() == pytest.approx(expected)
    # Descent on -scale raises it, descent on +scale lowers it.
    (raising,), (lowering,) = gradients(-scale(), [scale.log_scale]), gradients(scale(), [scale.log_scale])
    assert (raising.item() < 0) == up
    assert raising.item() == pytest.approx(-expected if up else 0.0)
    assert (lowering.item() > 0) == down
    assert lowering.item() == pytest.approx(expected)


def test_with_the_sigmoid_loss_the_logits_have_a_bias_and_no_largest_scale() -> None:
    net = LIMoE(tiny(loss="sigmoid", initial_scale=150.0), RouterConfig()).initialise(0).bfloat16()
    bias, scale = net(*pairs(2, net.config, dtype=torch.bfloat16)).bias, net.scale()
    assert bias.shape == () and bias.dtype == torch.float32 and bias.item() == -10.0
    with torch.no_grad():
        net.bias.logit_bias.add_(1.0)
    assert bias.item() == -10.0, "what is measured after a step is what the step used"
    assert scale.item() == pytest.approx(150.0) and gradients(-scale, [net.scale.log_scale])[0].item() < 0
    assert LIMoE(tiny(loss="sigmoid", initial_bias=-3.14), RouterConfig()).initialise(0).bias().item() == pytest.approx(-3.14)
    others = model(tiny())
    assert others(*pairs(2, others.config)).bias is None
    assert set(net.state_dict()) - set(others.state_dict()) == {"bias.logit_bias"}


def test_descent_brings_the_scale_back_below_its_maximum() -> None:
    scale = LogitScale()
    with torch.no_grad():
        scale.log_scale.fill_(math.log(101.0))
    for _ in range(3):
        (grad,) = gradients(scale(), [scale.log_scale])
        with torch.no_grad():
            scale.log_scale.sub_(0.001 * grad)
    assert scale().item() < 90


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 2), loss=st.sampled_from(["softmax", "sigmoid"]))
def test_the_training_loss_is_contrastive_plus_auxiliary(seed: int, top_k: int, loss: str) -> None:
    config, router = tiny(layers=3, expert_layers=[0, 2], loss=loss), RouterConfig(top_k=top_k)
    net = model(config, router)
    torch.manual_seed(seed)
    output = net(*pairs(3, config, seed))
    losses = training_losses(output, router.aux, config.experts, SingleProcess())
    assert list(losses.routing) == [0, 2]
    assert output.images is not None and output.texts is not None
    contrastive = (
        reference.contrastive(output.images, output.texts, output.scale)
        if output.bias is None
        else reference.sigmoid_contrastive(output.images, output.texts, output.scale, output.bias)
    )
    auxiliary, parts = auxiliary_loss(list(losses.routing.values()), router.aux)
    assert auxiliary is not None
    assert_close([losses.total, losses.contrastive, losses.auxiliary], [contrastive + auxiliary, contrastive, auxiliary])
    assert_close([losses.parts[name] for name in parts], list(parts.values()))
    assert losses.total.requires_grad and not losses.contrastive.requires_grad and not losses.auxiliary.requires_grad


def test_a_dense_model_has_no_auxiliary_loss() -> None:
    losses = training_losses(model(DENSE)(*pairs(3, DENSE)), RouterConfig().aux, DENSE.experts, SingleProcess())
    assert losses.auxiliary == 0 and losses.parts == {} and losses.routing == {}
    assert torch.equal(losses.total.detach(), losses.contrastive)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_every_parameter_learns(loss: str) -> None:
    net = model(tiny(experts=2, loss=loss), RouterConfig(capacity_factor=2.0))
    randomise(net, 0)
    losses = training_losses(net(*pairs(8, tiny())), RouterConfig().aux, 2, SingleProcess())
    names, parameters = zip(*net.named_parameters(), strict=True)
    still = [name for name, grad in zip(names, gradients(losses.total, list(parameters)), strict=True) if not grad.any()]
    assert still == []
