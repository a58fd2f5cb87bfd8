"""What an expert is said to take is what it took, whatever batches it came in."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from model.stream import IMAGE, TEXT
from model.tokenizer import WordPiece
from tests.model.build import model, pairs, randomise, tiny
from tests.trainer.evaluation.planted import NEVER_CHOSEN, TEXT_EXPERT, pictures, planted, tokens
from trainer.evaluation.routing_trace import trace
from trainer.evaluation.specialists import Specialists, find_specialists

CONFIG = tiny(image_size=8, patch=2, experts=3)


def found(batch_size: int = 100) -> tuple[Specialists, Specialists]:
    """Of 20 random images and texts, and of a plain count over one pass."""
    made = model(CONFIG)
    randomise(made, 3)
    images, texts = pairs(20, CONFIG)
    words = [[WordPiece(f"w{token}", 1) for token in row if token][:-1] for row in texts.tolist()]
    return find_specialists(made.eval(), images, texts, words, batch_size, lambda batch: batch)[1]


def test_shares_and_gates_are_counts_and_means():
    made = model(CONFIG)
    randomise(made, 3)
    images, texts = pairs(20, CONFIG)
    _, traces = trace(made.eval(), images, texts)
    layer = found()
    for modality, name in ((IMAGE, "image"), (TEXT, "text")):
        mine = traces[1].valid_n & (traces[1].modality_n == modality)
        assert layer.tokens[name] == layer.kept[name] == int(mine.sum())
        for expert in range(3):
            taken = mine & (traces[1].expert_nk[:, 0] == expert)
            assert float(layer.share(name)[expert]) == pytest.approx(int(taken.sum()) / int(mine.sum()))
            if taken.any():
                mean = float(traces[1].gate_nk[taken, 0].mean())
                assert float(layer.mean_gate(name)[expert]) == pytest.approx(mean)


def test_the_sure_words_are_those_with_the_largest_gates_each_once():
    made = model(CONFIG)
    randomise(made, 3)
    _, texts = pairs(20, CONFIG)
    _, traces = trace(made.eval(), texts=texts)
    layer, piecemeal = found(), found(batch_size=3)
    for expert in range(3):
        best: dict[str, tuple[float, int]] = {}
        for place in (traces[1].expert_nk[:, 0] == expert).nonzero().flatten().tolist():
            text, position = divmod(place, texts.shape[1])
            if position < int((texts[text] != 0).sum()) - 1:  # neither the end nor a pad
                word, gate = f"w{int(texts[text, position])}", float(traces[1].gate_nk[place, 0])
                best[word] = max(best.get(word, (0.0, 0)), (gate, text))
        expected = sorted(((gate, word, text) for word, (gate, text) in best.items()), reverse=True)[:8]
        for shown in (layer.sure_words(expert), piecemeal.sure_words(expert)):
            assert [(sure.word, sure.text) for sure in shown] == [(word, text) for _, word, text in expected]
            assert [sure.gate for sure in shown] == pytest.approx([gate for gate, _, _ in expected])


def test_the_patches_are_those_with_the_highest_gates_one_of_an_image():
    made = model(CONFIG)
    randomise(made, 3)
    images, _ = pairs(20, CONFIG)
    _, traces = trace(made.eval(), images)
    layer = found()
    for expert in range(3):
        taken = (traces[1].expert_nk[:, 0] == expert).nonzero().flatten().tolist()
        best: dict[int, tuple[float, int]] = {}
        for token in taken:
            image, gate = token // 16, float(traces[1].gate_nk[token, 0])
            best[image] = max(best.get(image, (0.0, 0)), (gate, token % 16))
        expected = sorted(((gate, image, *divmod(place, 4)) for image, (gate, place) in best.items()), reverse=True)[:8]
        shown = layer.patches(expert)
        assert [(patch.image, patch.row, patch.column) for patch in shown] == [row[1:] for row in expected]
        for patch, (gate, image, row, column) in zip(shown, expected, strict=True):
            assert patch.gate == pytest.approx(gate)
            assert patch.crop.shape == (3, 6, 6)
            inside = patch.crop[:, patch.top : patch.top + 2, patch.left : patch.left + 2]
            assert torch.equal(inside, images[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_any_batch_size_finds_the_same(batch_size: int):
    whole, parts = found(), found(batch_size)
    for name in ("image", "text"):
        assert torch.equal(whole.taken(name), parts.taken(name))
        torch.testing.assert_close(whole.mean_gate(name), parts.mean_gate(name))
    for expert in range(3):
        assert whole.words(expert, 9, least_count=1) == parts.words(expert, 9, least_count=1)
        places = [[(patch.image, patch.row, patch.column) for patch in layer.patches(expert)] for layer in (whole, parts)]
        assert places[0] == places[1]


def test_typical_words_are_those_more_frequent_there_than_elsewhere():
    layer = Specialists(2, patch=2)
    made = model(tiny(experts=2))
    randomise(made, 3)
    _, texts = pairs(40, tiny(), seed=5)
    words = [[WordPiece(f"w{token % 4}", 1) for token in row if token] for row in texts.tolist()]
    _, traces = trace(made.eval(), texts=texts)
    layer.add(traces[1], words=words)
    counts: list[Counter[str]] = [Counter(), Counter()]
    for token in traces[1].valid_n.nonzero().flatten().tolist():
        sample, position = int(traces[1].sample_n[token]), int(traces[1].position_n[token])
        counts[int(traces[1].expert_nk[token, 0])][words[sample][position].word] += 1
    for expert in range(2):
        every = counts[0] + counts[1]
        lift = {word: (count / counts[expert].total()) / (every[word] / every.total()) for word, count in counts[expert].items()}
        typical = layer.words(expert, 9)
        assert [word.word for word in typical] == sorted(
            [word for word in lift if lift[word] > 1 and counts[expert][word] >= 5], key=lambda word: -lift[word]
        )
        for word in typical:
            assert word.lift == pytest.approx(lift[word.word])
            assert (word.count, word.share) == (counts[expert][word.word], word.count / every[word.word])


def test_a_word_of_several_pieces_counts_once():
    words = [[WordPiece("red", 2), WordPiece("red", 2)]] * 6
    layer = find_specialists(
        planted(), pictures([0]), tokens(["red"]).repeat(6, 1).index_fill(1, torch.tensor([1]), 1), words, 4, lambda batch: batch
    )[0]
    assert layer.words(TEXT_EXPERT, 9) == []  # it is as frequent there as among all words
    assert float(layer.share("text")[TEXT_EXPERT]) == 1
    assert float(layer.share("image")[NEVER_CHOSEN]) == 0
    assert layer._word["red"] == pytest.approx(6)
    assert [len(layer.patches(expert)) for expert in range(5)] == [1, 0, 0, 0, 0]


def test_a_class_token_is_taken_like_others_but_is_no_patch():
    config = replace(CONFIG, pool="token")
    made = model(config)
    randomise(made, 3)
    block = made.towers[0].blocks[1]
    with torch.no_grad():  # what the first expert is surest of
        made.patches.class_token.copy_(100 * block.norm2.weight * block.mlp.router.weight[0])
    images, texts = pairs(20, config)
    _, traces = trace(made.eval(), images, texts)
    gates = torch.where(traces[1].modality_n == IMAGE, traces[1].gate_nk[:, 0], -1.0)[: 20 * 17].view(20, 17)
    assert (gates.argmax(1) == 16).any(), "no class token would have been shown anyway"
    layer = find_specialists(made, images, texts, [[] for _ in texts], 7, lambda batch: batch)[1]
    assert layer.tokens["image"] == 20 * 17
    assert all(0 <= patch.row < 4 for expert in range(3) for patch in layer.patches(expert))
