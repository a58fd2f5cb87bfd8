"""Experts can be told apart by their colours, and those of few experts do not change when there are more."""

import pytest
import torch

from trainer.explore.colours import expert_colours, oklab


def nearest(count: int) -> float:
    """The distance of the two most similar colours, in OKLab (black to white: 1)."""
    rgb = torch.tensor([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in expert_colours(count)])
    lab = oklab(rgb)
    return float(torch.pdist(lab).min())


# A just noticeable difference is about 0.02.
@pytest.mark.parametrize(("count", "least"), [(8, 0.12), (16, 0.08), (32, 0.05), (64, 0.03)])
def test_they_differ(count: int, least: float):
    assert nearest(count) >= least


def test_few_are_the_first_of_many_and_many_are_there():
    assert expert_colours(64)[:8] == expert_colours(8) and expert_colours(0) == ()
    assert len(set(expert_colours(256))) == 256


def test_oklab_is_the_published_one():
    """Ottosson's table of examples gives these in XYZ; white and grey have no chroma, and red is where it is known to be."""
    lab = oklab(torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]))
    assert lab[0].tolist() == pytest.approx([1, 0, 0], abs=1e-3) and lab[1].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert lab[2].tolist() == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-4)
