"""The atlas finds what each expert of a planted model is for, and nothing else."""

import pytest
import torch
from torch import Tensor

from model.config import RouterConfig
from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE, TEXT
from tests.model.build import model, pairs, randomise, tiny
from tests.trainer.evaluation.planted import NEVER_CHOSEN, TEXT_EXPERT, planted, samples, tokens
from trainer.evaluation.atlas import Embedded, TaskAtlas, make_atlas, tasks_of
from trainer.evaluation.routing_trace import knocked_out


def atlas(batch_size: int = 100) -> dict[str, TaskAtlas]:
    """Of the planted model, by task."""
    looked_at = samples(each=6)
    assert looked_at.pairs is not None
    tasks, images, texts = tasks_of(looked_at, [[caption] for caption in looked_at.pairs.captions])
    made = planted()
    embedded = Embedded(made, IMAGE, images, batch_size), Embedded(made, TEXT, tokens(texts), batch_size)
    return {of_task.task.name: of_task for of_task in make_atlas(*embedded, tasks, {0: 5})}


@pytest.fixture(scope="module")
def found() -> dict[str, TaskAtlas]:
    return atlas()


def test_an_expert_that_alone_serves_a_colour_is_found(found: dict[str, TaskAtlas]):
    zeroshot = found["zeroshot"]
    assert zeroshot.baseline == 1 and zeroshot.queries == 18
    by_colour = zeroshot.layers[0].groups["class"]["image"]
    for expert in range(3):
        lost = [float(colour == expert) for colour in range(4)]
        assert by_colour[expert].tolist() == lost
        assert float(zeroshot.layers[0].overall["image"][expert]) == pytest.approx(1 / 3)
        assert zeroshot.layers[0].groups["class"]["text"][expert].tolist() == [0, 0, 0, 0], "no text is its"


def test_an_expert_that_alone_serves_a_word_is_found_for_texts_alone(found: dict[str, TaskAtlas]):
    costs = found["zeroshot"].layers[0]
    assert costs.groups["class"]["text"][TEXT_EXPERT].tolist() == [0, 1, 0, 0]
    assert costs.groups["class"]["image"][TEXT_EXPERT].tolist() == [0, 0, 0, 0]
    assert costs.groups["class"]["both"][TEXT_EXPERT].tolist() == [0, 1, 0, 0]
    assert found["retrieval"].task.groupings["word"].names == ["blue", "green", "red"]
    by_word = found["retrieval"].layers[0].groups["word"]["text"][TEXT_EXPERT]
    assert by_word[1] > 0.1 and by_word[0] == by_word[2] == 0


def test_a_grouping_is_the_mean_over_its_queries(found: dict[str, TaskAtlas]):
    zeroshot = found["zeroshot"]
    assert zeroshot.task.groupings["warmth"].names == ["warm", "cold", "none"]
    by_class, by_warmth = (zeroshot.layers[0].groups[kind]["both"] for kind in ("class", "warmth"))
    torch.testing.assert_close(by_warmth, torch.stack([by_class[:, 0], by_class[:, 1:3].mean(1), by_class[:, 3]], dim=1))


def test_an_expert_that_is_never_chosen_costs_exactly_nothing(found: dict[str, TaskAtlas]):
    for of_task in found.values():
        for costs in of_task.layers[0].overall.values():
            assert float(costs[NEVER_CHOSEN]) == 0
        for kind in of_task.task.groupings:
            assert all(not costs[NEVER_CHOSEN].any() for costs in of_task.layers[0].groups[kind].values())


@pytest.mark.parametrize("batch_size", [1, 5])
def test_any_batch_size_finds_the_same(found: dict[str, TaskAtlas], batch_size: int):
    for name, of_task in atlas(batch_size).items():
        for knocked, costs in of_task.layers[0].overall.items():
            torch.testing.assert_close(costs, found[name].layers[0].overall[knocked])


def random_model(router: RouterConfig) -> tuple[LIMoE, Tensor, Tensor]:
    config = tiny(layers=3, expert_layers=[0, 2], experts=8)
    made = model(config, router)
    randomise(made, 2)
    return made.eval(), *pairs(6, config)


@pytest.mark.parametrize("router", [RouterConfig(), RouterConfig(top_k=2), RouterConfig(choice="expert", capacity_factor=0.5)])
@pytest.mark.parametrize("modality", [IMAGE, TEXT])
def test_only_what_an_expert_took_is_computed_again_and_it_is_what_the_whole_would_be(modality: int, router: RouterConfig):
    made, images, texts = random_model(router)
    inputs, given = (images, "images") if modality == IMAGE else (texts, "texts")
    embedded = Embedded(made, modality, inputs, batch_size=4)
    spared = 0
    for layer, of_layer in expert_layers(made).items():
        for expert in range(8):
            with knocked_out(of_layer, expert):
                whole = getattr(made(**{given: inputs}), given).float()
            without = embedded.without(layer, expert)
            torch.testing.assert_close(without, whole)
            untouched = ~embedded.uses[layer][:, expert]
            spared += int(untouched.sum())
            assert torch.equal(without[untouched], embedded.rows[untouched])
            assert not torch.equal(without[~untouched], embedded.rows[~untouched]) or untouched.all()
    assert spared or router.choice == "expert", "there every expert takes a token of every sequence"


def test_the_reciprocal_rank_is_that_of_a_plain_loop():
    looked_at = samples(each=3)
    assert looked_at.pairs is not None
    tasks, images, texts = tasks_of(looked_at, [[caption] for caption in looked_at.pairs.captions])
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(len(items), 4, generator=generator).sign() for items in (images, texts))  # with ties
    found = tasks[1].score(rows, columns)
    first, prompts = 9, 4  # what the classification set has before
    for caption in range(9):
        scores = [float(columns[prompts + caption] @ rows[first + image]) for image in range(9)]
        above = sum(score > scores[caption] for score in scores)
        level = sum(score == scores[caption] for score in scores)
        assert float(found[caption]) == pytest.approx(1 / (above + (1 + level) / 2))
