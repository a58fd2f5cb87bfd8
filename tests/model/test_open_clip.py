"""An export with open_clip's interface."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import model
from model import open_clip
from model.errors import UserError
from tests.trainer.export.runs import config, write_run
from trainer.export.request import read_arguments
from trainer.export.write import write_export

TEXTS = ["picture number 3", "a small set", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("open_clip") / "photos", config(), (10,))
    write_export(read_arguments([f"run={run}"]))
    return run


def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((20, 30, 3), (16, 16, 3), (40, 25, 3))
    return [Image.fromarray(torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()) for shape in shapes]


def test_it_embeds_what_the_export_embeds(run: Path) -> None:
    limoe, transform, tokenizer = open_clip.load(run / "export")
    ours = model.load(run / "export")
    pixels, tokens = torch.stack([transform(image) for image in pictures()]), tokenizer(TEXTS)
    assert pixels.dtype == torch.float32 and tokens.shape == (3, limoe.context_length) and tokens.dtype == torch.int64
    images, texts = limoe.encode_image(pixels, normalize=True), limoe.encode_text(tokens, normalize=True)
    torch.testing.assert_close(images, ours.embed_images(pictures()), atol=1e-6, rtol=0)
    torch.testing.assert_close(texts, ours.embed_texts(TEXTS), atol=1e-6, rtol=0)

    raw = limoe.encode_image(pixels)
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(3), atol=1e-3)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), images)
    assert limoe.encode_text(tokens).dtype == torch.float32


def test_its_logits_are_those_of_the_model(run: Path) -> None:
    limoe, transform, tokenizer = open_clip.load(run / "export")
    pixels, tokens = torch.stack([transform(image) for image in pictures()]), tokenizer(TEXTS)
    assert limoe.logit_scale.ndim == 0 and limoe.logit_bias is None and model.load(run / "export").bias is None
    assert limoe.logit_scale.exp().item() == pytest.approx(model.load(run / "export").scale)
    images, texts, scale = limoe(pixels, tokens)
    of_images, of_texts = limoe.get_logits(pixels, tokens)
    torch.testing.assert_close(of_images, scale * images @ texts.T)
    assert torch.equal(of_texts, of_images.T)
    assert limoe(text=tokens)[0] is None and limoe(pixels)[1] is None


def test_with_the_sigmoid_loss_the_logits_have_a_bias_too(tmp_path: Path) -> None:
    made = config()
    made.model.loss, made.model.initial_bias = "sigmoid", -7.5
    run = write_run(tmp_path / "photos", made, (10,))
    write_export(read_arguments([f"run={run}", "dtype=bf16"]))
    limoe, transform, tokenizer = open_clip.load(run / "export")
    exported = model.load(run / "export")
    assert limoe.logit_bias.item() == exported.bias == -7.5
    pixels, tokens = torch.stack([transform(image) for image in pictures()]), tokenizer(TEXTS)
    images, texts, scale, bias = limoe(pixels, tokens)
    of_images, of_texts = limoe.get_logits(pixels, tokens)
    torch.testing.assert_close(of_images, scale * images @ texts.T + bias)
    assert torch.equal(of_texts, of_images.T)


def test_the_tokenizer_takes_what_open_clips_takes(run: Path) -> None:
    _, _, tokenizer = open_clip.load(run / "export")
    assert torch.equal(tokenizer(TEXTS[0]), tokenizer(TEXTS[:1]))
    assert torch.equal(tokenizer(TEXTS, context_length=4)[:, :3], tokenizer(TEXTS)[:, :3])


def test_a_modality_that_was_left_out_is_told(run: Path) -> None:
    write_export(read_arguments([f"run={run}", "modality=text", f"output={run}/text"]))
    limoe, _, tokenizer = open_clip.load(run / "text", dtype=torch.bfloat16)
    assert limoe.encode_text(tokenizer(TEXTS)).dtype == torch.float32
    with pytest.raises(UserError, match="text"):
        limoe.encode_image(torch.zeros(1, 3, 16, 16))
