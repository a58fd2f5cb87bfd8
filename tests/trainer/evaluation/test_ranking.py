import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.evaluation.reference import hit_by_counting, hit_by_orders
from trainer.evaluation.ranking import chance, hits, similarity

candidates = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6).filter(
    lambda pairs: any(right for _, right in pairs)
)


def probability(scores: list[float], right: list[bool], k: int) -> float:
    return hits(torch.tensor([scores], dtype=torch.float32), torch.tensor([right]), [k]).item()


@given(candidates, st.integers(1, 7))
def test_hits_is_the_share_of_the_orders_that_hit(pairs, k):
    scores, right = [float(score) for score, _ in pairs], [is_right for _, is_right in pairs]
    expected = hit_by_orders(scores, right, k)
    assert hit_by_counting(scores, right, k) == expected
    assert probability(scores, right, k) == pytest.approx(float(expected), abs=1e-12)


def test_without_ties_it_is_the_usual_count():
    scores = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    right = torch.zeros(50, 40, dtype=torch.bool)
    right[torch.arange(50), torch.arange(50) % 40] = True
    for k, found in zip([1, 5, 10], hits(scores, right, [1, 5, 10]), strict=True):
        usual = right.gather(1, scores.topk(k).indices).any(dim=1)
        assert torch.equal(found, usual.double())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 10))
def test_equal_scores_are_at_chance(right_counts, k):
    width = 9
    right = torch.tensor([[column < count for column in range(width)] for count in right_counts])
    assert hits(torch.ones(len(right_counts), width), right, [k])[0].mean().item() == pytest.approx(
        chance(torch.tensor(right_counts), width, k), abs=1e-12
    )


def test_chance_of_one_right_among_many_is_places_by_candidates():
    assert chance(torch.tensor([1, 1]), 40, 10) == pytest.approx(0.25)
    assert chance(torch.tensor([1]), 3, 10) == 1.0


def test_scores_that_are_no_numbers_do_not_hit():
    nan = float("nan")
    right = [True, False, False]
    assert probability([nan, nan, nan], right, 1) == 0
    assert probability([0.5, nan, 0.1], right, 1) == 0
    assert probability([nan, 0.5, 0.1], right, 2) == 0
    assert probability([0.5, nan, 0.1], right, 2) == 1


def test_equal_rows_have_equal_scores_wherever_they_stand():
    row = torch.randn(1, 67, generator=torch.Generator().manual_seed(1))
    whole = similarity(row.expand(37, -1), row.expand(53, -1))
    assert whole.unique().numel() == 1
    assert torch.equal(whole[:1, :1], similarity(row, row))
