"""Ranks that share the work on the experts find what one process finds, and never call the model out of step."""

import copy
from collections.abc import Iterable

import pytest
import torch

from model.limoe import LIMoE
from model.stream import IMAGE, TEXT
from model.tokenizer import WordPiece
from tests.model.build import model, pairs, randomise, tiny
from tests.trainer.evaluation.helpers import on_threads
from trainer.distributed.processes import ALONE, Processes
from trainer.evaluation.atlas import Embedded
from trainer.evaluation.rank_rows import RankRows, filled
from trainer.evaluation.specialists import Specialists, find_specialists

CONFIG = tiny(layers=2, expert_layers=[0, 1], image_size=8, patch=2, experts=3)
SAMPLES = 11  # so that the last rank has less to do, or nothing


MODEL = model(CONFIG).eval()
randomise(MODEL, 3)


def made() -> LIMoE:
    """A model of a rank's own, as hooks are put into it."""
    return copy.deepcopy(MODEL)


def in_step(processes: Processes, batches: list[int]) -> None:
    """All ranks call the model equally often, with equal shapes."""
    assert len(set(map(tuple, processes.gather_objects(batches)))) == 1


@pytest.mark.parametrize(("total", "world"), [(11, 1), (11, 2), (11, 4), (2, 3), (8, 4), (1, 5)])
def test_every_row_has_one_owner_and_all_ranks_have_the_same_batches(total: int, world: int):
    def work(processes: Processes) -> tuple[list[int], list[int]]:
        ranks = RankRows(total, processes)
        batches = list(ranks.batches(3))
        in_step(processes, [len(rows) for rows, _ in batches])
        mine = [row for rows, count in batches for row in rows[:count]]
        rows = torch.tensor([row for batch, _ in batches for row in batch])
        return mine, ranks.gather(rows).tolist()

    parts = on_threads(work, world)
    assert [row for mine, _ in parts for row in mine] == list(range(total))
    assert all(gathered == list(range(total)) for _, gathered in parts)


def test_filling_rows_count_for_nobody():
    assert list(filled([4, 5, 6], 5, 2)) == [([4, 5], 2), ([6, 0], 1), ([0], 0)]
    assert list(filled([], 0, 2)) == []


def told(layers: Iterable[Specialists]) -> list[object]:
    return [
        (
            layer.tokens,
            layer.kept,
            layer.taken("image").tolist(),
            layer.taken("text").tolist(),
            [round(gate, 6) for gate in layer.mean_gate("text").tolist()],
            [layer.words(expert, 9, least_count=1) for expert in range(3)],
            [[(sure.word, sure.text, round(sure.gate, 6)) for sure in layer.sure_words(expert)] for expert in range(3)],
            [[(patch.image, patch.row, patch.column) for patch in layer.patches(expert)] for expert in range(3)],
        )
        for layer in layers
    ]


def specialists(processes: Processes) -> list[object]:
    images, texts = pairs(SAMPLES, CONFIG)
    words = [[WordPiece(f"w{token}", 1) for token in row if token][:-1] for row in texts.tolist()]
    batches: list[int] = []

    def prepare(batch: torch.Tensor) -> torch.Tensor:
        batches.append(len(batch))
        return batch

    found = find_specialists(made(), images, texts, words, 2, prepare, processes)
    in_step(processes, batches)
    return told(found.values())


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_specialists_are_those_of_one_process(world: int):
    expected = specialists(ALONE)
    assert on_threads(specialists, world) == [expected] * world


@pytest.mark.parametrize("modality", [IMAGE, TEXT])
@pytest.mark.parametrize("world", [1, 3, 6])
def test_what_is_lost_is_that_of_one_process(modality: int, world: int):
    inputs = pairs(SAMPLES, CONFIG)[modality]

    def work(processes: Processes) -> list[torch.Tensor]:
        batches: list[int] = []

        def prepare(batch: torch.Tensor) -> torch.Tensor:
            batches.append(len(batch))
            return batch

        embedded = Embedded(made(), modality, inputs, 2, prepare, processes)
        without = [embedded.without(layer, expert) for layer in (0, 1) for expert in range(3)]
        in_step(processes, batches)
        return [embedded.rows, *without]

    reference = Embedded(made(), modality, inputs, 100)
    expected = [reference.rows, *(reference.without(layer, expert) for layer in (0, 1) for expert in range(3))]
    assert any(not torch.equal(expected[0], without) for without in expected[1:]), "something is lost"
    for of_rank in on_threads(work, world):
        for found, wanted in zip(of_rank, expected, strict=True):
            torch.testing.assert_close(found, wanted)
