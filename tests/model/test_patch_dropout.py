"""Which patches of an image a training step sees, and that the model sees no others."""

import pytest
import torch

from model.config import kept_patches
from model.limoe import LIMoE
from model.patch_dropout import draw_kept
from tests.distributed.setups import batch, tiny

KEY = 2**63 + 7


@pytest.mark.parametrize(
    ("patches", "share", "kept"), [(196, 0.0, 196), (196, 0.5, 98), (10, 0.9, 1), (64, 0.75, 16), (4, 0.99, 1), (9, 0.5, 4)]
)
def test_the_number_that_stays_is_fixed(patches: int, share: float, kept: int):
    assert kept_patches(patches, share) == kept


def test_each_row_is_another_set_in_ascending_order():
    rows = draw_kept(KEY, 0, 50, 14, 6)
    assert (rows.shape, rows.dtype) == ((50, 6), torch.int64)
    assert (rows.diff(dim=1) > 0).all() and rows.min() >= 0 and rows.max() < 14
    assert len({tuple(row) for row in rows.tolist()}) > 40
    assert not torch.equal(rows, draw_kept(KEY + 1, 0, 50, 14, 6))


@pytest.mark.parametrize("patches", [16, 13])
def test_an_image_gets_the_same_patches_wherever_the_batch_is_cut(patches: int):
    whole = draw_kept(KEY, 5, 12, patches, 4)
    parts = [draw_kept(KEY, 5, 3, patches, 4), draw_kept(KEY, 8, 8, patches, 4), draw_kept(KEY, 16, 1, patches, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_patch_stays_as_often_as_any_other():
    counts = torch.bincount(draw_kept(KEY, 0, 4000, 10, 3).flatten(), minlength=10)
    assert (counts - 1200).abs().max() < 5 * (4000 * 0.3 * 0.7) ** 0.5


def test_the_model_sees_what_is_kept_at_its_own_place_and_nothing_else():
    config = tiny()
    model = LIMoE(config.model, config.router).initialise(0).train()
    images, texts = batch(0, config)
    kept = draw_kept(KEY, 0, len(images), 16, 6)
    whole, _ = model.patches(images)
    some, valid = model.patches(images, kept)
    assert valid.all() and valid.shape == (len(images), 6)
    for row, patches in enumerate(kept.tolist()):
        torch.testing.assert_close(some[row], whole[row, patches])
    other = images.clone()
    for row, patches in enumerate(kept.tolist()):
        for patch in set(range(16)) - set(patches):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            other[row, :, top : top + 4, left : left + 4] = torch.nan
    seen, blind = model(images, texts, None, kept), model(other, texts, None, kept)
    assert seen.images is not None and blind.images is not None
    assert torch.equal(seen.images, blind.images)
    everything = model(images, texts, None, torch.arange(16).expand(len(images), 16))
    torch.testing.assert_close(everything.images, model(images, texts).images)
