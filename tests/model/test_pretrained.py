"""An exported model embeds as the module it came from, with evaluation's preprocessing, and says what is wrong with a folder."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import model
from model.config import ModelConfig, RouterConfig
from model.errors import UserError
from model.limoe import LIMoE
from model.preprocess import centre_crop, decode_image, normalise
from model.pretrained import CONFIG, FILES, TOKENIZER, WEIGHTS
from tests.model.build import tiny
from tests.trainer.data.shards_on_disk import small_tokenizer

ROOT = Path(__file__).parents[2]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
# Tight buffers in evaluation, as a run may have had them: a loaded model must drop nothing all the same.
ROUTER = RouterConfig(eval_capacity_factor=0.5)


def shape() -> ModelConfig:
    return tiny(image_size=16, patch=8, vocabulary=200, text_length=8)


def trained() -> LIMoE:
    return LIMoE(shape(), ROUTER).initialise(3)


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_file(image: Image.Image, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an export leaves, written without the program's own writer."""
    values = {"model": asdict(shape()), "router": asdict(ROUTER), "data": {"mean": MEAN, "std": STD, "train": "/x"}, "seed": 0}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(values))
    save_file(trained().state_dict(), tmp_path / WEIGHTS)
    small_tokenizer(tmp_path)
    (tmp_path / "t.model").rename(tmp_path / TOKENIZER)
    return tmp_path


def test_it_embeds_as_the_module_does(folder: Path):
    loaded, module = model.load(folder), trained().eval()
    module.towers[0].blocks[1].mlp.config = RouterConfig()  # drops nothing
    images, texts = [picture(number) for number in range(3)], ["picture number 7", "a small set", ""]
    pixels = normalise(torch.stack([centre_crop(image, 16) for image in images]), MEAN, STD, torch.float32)
    with torch.no_grad():
        output = module(pixels, loaded.tokenize(texts))
    torch.testing.assert_close(loaded.embed_images(images), output.images)
    torch.testing.assert_close(loaded.embed_texts(texts), output.texts)
    torch.testing.assert_close(torch.stack([loaded.preprocess(image) for image in images]), pixels, rtol=0, atol=0)
    assert loaded.scale == pytest.approx(float(output.scale))
    assert loaded.tokenize(texts).shape == (3, 8)


def test_an_embedding_does_not_depend_on_its_batch(folder: Path):
    loaded = model.load(str(folder))
    images, texts = [picture(number) for number in range(7)], [f"picture number {number}" for number in range(7)]
    for embed, items in ((loaded.embed_images, images), (loaded.embed_texts, texts)):
        alone = torch.cat([embed([item]) for item in items])
        torch.testing.assert_close(embed(items), alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(embed(iter(items), batch_size=3), alone, rtol=0, atol=1e-6)
        assert embed([]).shape == (0, shape().embedding)
        assert not alone.requires_grad


def test_a_large_photograph_is_read_as_evaluation_reads_it(folder: Path):
    loaded, content = model.load(folder), as_file(picture(1, 800, 600))
    path = folder / "photo.jpg"
    path.write_bytes(content)
    expected = normalise(centre_crop(decode_image(content, 32), 16), MEAN, STD, torch.float32)
    opened = Image.open(path)
    for image in (content, path, str(path), opened):
        assert torch.equal(loaded.preprocess(image), expected)
    assert opened.size == (800, 600), "the caller's image is left as it was"
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(path)))


def test_images_of_every_mode_can_be_embedded(folder: Path):
    loaded = model.load(folder)
    grey = Image.new("L", (20, 20), 128)
    deep = Image.fromarray(np.full((20, 20), 128 << 8, dtype=np.uint16))
    rows = loaded.embed_images([grey, grey.convert("RGBA"), grey.convert("P"), deep, as_file(grey, "PNG"), grey.convert("RGB")])
    torch.testing.assert_close(rows, rows[-1:].expand_as(rows), rtol=0, atol=1e-6)


def test_the_weights_can_be_used_in_bfloat16(folder: Path):
    exact, short = model.load(folder), model.load(folder, dtype=torch.bfloat16)
    assert (exact.dtype, short.dtype) == (torch.float32, torch.bfloat16)
    rows = short.embed_images([picture(1)])
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, exact.embed_images([picture(1)]), rtol=0, atol=0.1)
    save_file({name: value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}, folder / "short")
    (folder / "short").replace(folder / WEIGHTS)
    assert model.load(folder).dtype == torch.bfloat16
    assert torch.equal(model.load(folder).embed_images([picture(1)]), rows)


def test_a_text_for_a_list_and_what_is_no_image_are_told(folder: Path):
    loaded = model.load(folder)
    with pytest.raises(TypeError, match="list of texts"):
        loaded.embed_texts("a frog")
    with pytest.raises(UserError, match=r"image /nowhere.jpg: No such file"):
        loaded.embed_images(["/nowhere.jpg"])
    with pytest.raises(UserError, match="cannot be decoded"):
        loaded.embed_images([b"no image"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop("towers.0.norm.weight")
    save_file(weights, folder / WEIGHTS)


def other_width(folder: Path) -> None:
    values = yaml.safe_load((folder / CONFIG).read_text())
    values["model"]["embedding"] = 9
    (folder / CONFIG).write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        *[
            (lambda folder, name=name: (folder / name).unlink(), f"no {name} there; give the folder that `python -m")
            for name in FILES
        ],
        (lambda folder: cut(folder / WEIGHTS), "model.safetensors is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "model.safetensors is damaged"),
        (lambda folder: (folder / CONFIG).write_text("a: ["), "config.yaml: no configuration of a trained model"),
        (lambda folder: (folder / CONFIG).write_text("seed: 0"), "config.yaml: no configuration of a trained model"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "config.yaml: no configuration of a trained model"),
        (lambda folder: (folder / TOKENIZER).write_bytes(b"x"), "tokenizer.model: not a SentencePiece model"),
        (without_a_layer, "1 tensors differ, such as towers.0.norm.weight: missing"),
        (other_width, "2 tensors differ, such as heads.image.weight"),
    ],
)
def test_a_wrong_folder_is_told_in_one_line(folder: Path, harm: Callable[[Path], object], told: str):
    harm(folder)
    with pytest.raises(UserError) as caught:
        model.load(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_needs_neither_deepspeed_nor_hydra_nor_the_trainer(folder: Path):
    program = """
import sys, model
light = set(sys.modules)
limoe = model.load(sys.argv[1])
print(limoe.embed_texts(["a small set"]).shape[1])
print(sorted(light & {"PIL", "sentencepiece", "safetensors", "torch"}))
unwanted = {"deepspeed", "hydra", "omegaconf", "trainer", "wandb", "fairscale"}
print(sorted(unwanted & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [str(shape().embedding), "[]", "[]"], done.stderr
