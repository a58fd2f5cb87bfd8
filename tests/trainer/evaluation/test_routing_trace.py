"""What a trace tells is what a plain loop through the blocks finds; without an expert, its tokens pass by the residual."""

import pytest
import torch
from torch import Tensor

from model.config import RouterConfig
from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE, TEXT
from tests.model.build import ThreadPeers, model, pairs, play, randomise, tiny
from trainer.evaluation.routing_trace import knocked_out, trace

CONFIG = tiny(layers=3, expert_layers=[0, 2])


def seeded(router: RouterConfig | None = None) -> LIMoE:
    made = model(CONFIG, router)
    randomise(made, 1)
    return made.eval().requires_grad_(False)


def looped(made: LIMoE, images: Tensor, texts: Tensor, without: tuple[int, int] | None = None) -> tuple[list, Tensor]:
    """One sequence and one token at a time: (layer, modality, sample, position, expert, gate) in this order, and embeddings."""
    decided: list[tuple[int, int, int, int, int, float]] = []
    rows: list[Tensor] = []
    sequences = [(IMAGE, x_ld) for x_ld in made.patches(images)[0]]
    sequences += [(TEXT, x_ld[tokens != 0]) for x_ld, tokens in zip(made.tokens(texts)[0], texts, strict=True)]
    for index, (modality, x_ld) in enumerate(sequences):
        sample = index if modality == IMAGE else index - len(images)
        for layer, block in enumerate(made.towers[0].blocks):
            segment = (type("Whole", (), {"tokens": len(x_ld), "count": 1, "length": len(x_ld), "modality": IMAGE})(),)
            x_ld = x_ld + block.attention(block.norm1(x_ld), torch.ones(len(x_ld), dtype=torch.bool), segment)
            outputs = []
            for position, token in enumerate(block.norm2(x_ld)):
                if layer not in CONFIG.expert_layers:
                    outputs.append(block.mlp(token))
                    continue
                gates = (block.mlp.router.weight @ token).softmax(0)
                expert = int(gates.argmax())
                decided.append((layer, modality, sample, position, expert, float(gates[expert])))
                experts = block.mlp.experts
                hidden = torch.nn.functional.gelu(token @ experts.up[expert] + experts.up_bias[expert, 0])
                output = gates[expert] * (hidden @ experts.down[expert] + experts.down_bias[expert, 0])
                outputs.append(torch.zeros_like(output) if without == (layer, expert) else output)
            x_ld = x_ld + torch.stack(outputs)
        head = made.heads["image" if modality == IMAGE else "text"]
        rows.append(torch.nn.functional.normalize(head(made.towers[0].norm(x_ld).mean(0)), dim=0))
    return sorted(decided), torch.stack(rows)


def test_the_trace_is_what_a_plain_loop_decides():
    made, (images, texts) = seeded(), pairs(3, CONFIG)
    texts = torch.cat([texts, texts[:1]])  # a caption more than images
    _, found = trace(made, images, texts)
    told = [
        (layer, *map(int, place), int(of_layer.expert_nk[n, 0]), pytest.approx(float(of_layer.gate_nk[n, 0]), rel=1e-9))
        for layer, of_layer in found.items()
        for n, place in enumerate(zip(of_layer.modality_n, of_layer.sample_n, of_layer.position_n, strict=True))
        if of_layer.valid_n[n]
    ]
    expected, _ = looped(made, images, texts)
    assert sorted(told, key=lambda row: row[:4]) == expected
    assert all(of_layer.kept_nk[of_layer.valid_n].all() for of_layer in found.values()), "nothing is dropped"
    assert found[0].patch(3, columns=2) == (1, 1)


def test_without_an_expert_its_tokens_pass_by_the_residual():
    made, (images, texts) = seeded(), pairs(3, CONFIG)
    for layer, expert in ((0, 1), (2, 3)):
        with knocked_out(expert_layers(made)[layer], expert):
            output = made(images, texts)
        expected = looped(made, images, texts, without=(layer, expert))[1]
        torch.testing.assert_close(torch.cat([output.images, output.texts]), expected)


def test_an_expert_that_is_not_chosen_makes_no_difference_to_the_last_bit():
    made, (images, texts) = seeded(), pairs(2, CONFIG)
    whole, found = trace(made, images[:1], texts[:1])
    unused = [
        (layer, expert)
        for layer, of_layer in found.items()
        for expert in range(CONFIG.experts)
        if expert not in of_layer.expert_nk[of_layer.valid_n]
    ]
    assert unused
    for layer, expert in unused:
        with knocked_out(expert_layers(made)[layer], expert):
            output = made(images[:1], texts[:1])
        assert torch.equal(output.images, whole.images) and torch.equal(output.texts, whole.texts)


def test_nothing_stays_behind():
    made, (images, texts) = seeded(), pairs(2, CONFIG)
    before = made(images, texts)
    _, found = trace(made, images)
    with knocked_out(expert_layers(made)[0], int(found[0].expert_nk[0, 0])):
        assert not torch.equal(made(images, texts).images, before.images)
    assert torch.equal(made(images, texts).images, before.images)
    assert not any(module._forward_hooks for module in made.modules())


@pytest.mark.parametrize("router", [RouterConfig(top_k=2), RouterConfig(choice="expert"), RouterConfig(eval_capacity_factor=0.5)])
def test_the_gates_and_the_slots_are_those_that_made_the_output(router: RouterConfig):
    made, (images, texts) = seeded(router), pairs(3, CONFIG)
    layer = made.towers[0].blocks[2].mlp
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, given, output: seen.extend([given[0].x_nd, output[0]]))
    _, found = trace(made, images, texts)
    x_nd, y_nd = seen
    weight_ne = torch.zeros(len(x_nd), CONFIG.experts, dtype=torch.float64)
    weight_ne.scatter_(1, found[2].expert_nk, found[2].gate_nk * found[2].kept_nk)
    of_expert = [layer.experts(x_nd.expand(CONFIG.experts, -1, -1))[expert] for expert in range(CONFIG.experts)]
    torch.testing.assert_close(y_nd, torch.einsum("ne,end->nd", weight_ne, torch.stack(of_expert)))
    if router.eval_capacity_factor:
        assert not found[2].kept_nk[found[2].valid_n].all()


def test_routing_is_not_traced_while_the_router_is_noisy():
    with pytest.raises(ValueError, match="evaluation mode"):
        trace(seeded().train(), *pairs(1, CONFIG))


def test_experts_on_two_ranks_are_traced_and_knocked_out_as_on_one():
    (images, texts), experts = pairs(4, CONFIG), range(CONFIG.experts)
    whole = model(CONFIG).eval().requires_grad_(False)

    def ask(made: LIMoE, rows: slice) -> list[Tensor]:
        without = []
        for expert in experts:
            with knocked_out(expert_layers(made)[2], expert):
                without.append(made(images[rows], texts[rows]).images)
        return [*without, trace(made, images[rows])[1][2].expert_nk]

    def part(peers: ThreadPeers) -> list[Tensor]:
        with torch.no_grad():  # each thread has its own
            return ask(model(CONFIG, peers=peers).eval(), slice(2 * peers.rank, 2 * peers.rank + 2))

    expected, found = ask(whole, slice(None)), play(2, part)
    for of_all, *of_ranks in zip(expected, *found, strict=True):
        torch.testing.assert_close(torch.cat(of_ranks), of_all)
    assert not all(torch.equal(without, expected[0]) for without in expected[:-1])
