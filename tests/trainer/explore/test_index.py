"""A gallery is embedded once: again only for other weights, another gallery or another tokenizer."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.tokenizer import Tokenizer
from tests.trainer.explore.made import made_trained
from trainer.checkpoint.trained import Trained
from trainer.explore import index
from trainer.explore.gallery import Gallery
from trainer.explore.index import KEPT, index_gallery, key_of, make_index


def test_the_second_time_it_is_read(trained: Trained, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = index_gallery(trained, gallery, tmp_path / "cache")
    monkeypatch.setattr(index, "make_index", lambda *_: pytest.fail("embedded again"))
    read = index_gallery(trained, gallery, tmp_path / "cache", lambda: pytest.fail("told so"))
    assert torch.equal(read.images_nd, made.images_nd) and torch.equal(read.texts_td, made.texts_td)
    assert read.cards == made.cards


def test_batches_make_no_difference(trained: Trained, gallery: Gallery):
    whole = replace(trained, config=replace(trained.config, eval=replace(trained.config.eval, batch_size=100)))
    one, other = make_index(trained, gallery), make_index(whole, gallery)
    assert torch.allclose(one.images_nd, other.images_nd, atol=1e-5)
    patches = [[[patch["image"] for patch in card["patches"]] for card in found.cards[1]] for found in (one, other)]
    assert patches[0] == patches[1]


def test_the_key_names_all_that_an_index_depends_on(trained: Trained, gallery: Gallery, tokenizer: Tokenizer):
    same = made_trained(tokenizer)
    assert key_of(same, gallery) == key_of(trained, gallery)
    weights = made_trained(tokenizer)
    next(weights.model.parameters()).data[0, 0] += 1
    brighter = made_trained(tokenizer)
    brighter.config.data.mean = [0.1, 0.5, 0.5]
    heads = made_trained(tokenizer, heads=4)
    images = gallery.images.clone()
    images[0, 0, 0, 0] ^= 1
    others = [
        (weights, gallery),
        (brighter, gallery),
        (heads, gallery),
        (trained, replace(gallery, images=images)),
        (trained, replace(gallery, texts=[*gallery.texts[:-1], "another"])),
    ]
    assert len({key_of(*other) for other in others} | {key_of(trained, gallery)}) == len(others) + 1


@pytest.mark.parametrize("content", [b"", b"not a safetensors file" * 9])
def test_a_damaged_file_is_made_again(trained: Trained, gallery: Gallery, tmp_path: Path, content: bytes):
    path = tmp_path / f"{key_of(trained, gallery)}.safetensors"
    path.write_bytes(content)
    index_gallery(trained, gallery, tmp_path)
    assert path.stat().st_size > 1000


def test_a_folder_that_cannot_be_written_costs_only_time(
    trained: Trained, gallery: Gallery, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    found = index_gallery(trained, gallery, tmp_path / "file" / "cache")
    assert len(found.images_nd) == len(gallery.ids)
    assert "the next start embeds everything again" in caplog.text


def test_only_the_newest_are_kept(trained: Trained, gallery: Gallery, tmp_path: Path):
    for number in range(KEPT + 3):
        path = tmp_path / f"{number}.safetensors"
        path.write_text("")
        os.utime(path, (number, number))
    index_gallery(trained, gallery, tmp_path)
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept == {key_of(trained, gallery), *map(str, range(4, KEPT + 3))}
