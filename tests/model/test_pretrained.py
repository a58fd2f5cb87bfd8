"""An exported model embeds as the module it came from, with evaluation's preprocessing, and says what is wrong with a folder."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image
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


def every_kind(folder: Path) -> dict[str, Any]:
    """One picture as everything that a user may have it in."""
    shown = picture(5)
    array, path = np.asarray(shown), folder / "shown.png"
    shown.save(path)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    opaque = np.concatenate([array, np.full((*array.shape[:2], 1), 255, np.uint8)], axis=2)
    return {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memoryview": memoryview(path.read_bytes()),
        "open file": io.BytesIO(path.read_bytes()),
        "pillow": shown,
        "pillow, unread": Image.open(path),
        "array": array,
        "array of floats": (array / 255).astype(np.float32),
        "array of 64 bits": array.astype(np.int64),
        "array with alpha": opaque,
        "tensor": tensor,
        "tensor of floats": tensor / 255,
        "tensor with gradient": (tensor / 255).requires_grad_(),
    }


def test_an_image_can_be_given_as_anything(folder: Path):
    loaded, expected = model.load(folder), model.load(folder).preprocess(picture(5))
    for kind, image in every_kind(folder).items():
        assert torch.equal(loaded.preprocess(image), expected), kind
    with (folder / "shown.png").open("rb") as file:
        assert torch.equal(loaded.preprocess(file), expected)
    in_bfloat16 = loaded.preprocess(every_kind(folder)["tensor of floats"].bfloat16())
    torch.testing.assert_close(in_bfloat16, expected, rtol=0, atol=0.03)


def test_grey_deep_and_black_and_white_images_can_be_given(folder: Path):
    loaded = model.load(folder)
    grey = np.full((20, 20), 128, np.uint8)
    expected = loaded.preprocess(Image.fromarray(grey))
    for image in (
        grey,
        grey[:, :, None],
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
        Image.fromarray(grey.astype(np.int32)),
        Image.fromarray(grey.astype(np.float32)),
        Image.fromarray(grey.astype(np.uint16) << 8),
        Image.fromarray(grey.astype(np.int32) << 8),
    ):
        assert torch.equal(loaded.preprocess(image), expected)
    white = loaded.preprocess(Image.new("L", (20, 20), 255))
    for image in (grey > 0, torch.from_numpy(grey > 0), Image.new("1", (20, 20), 1)):
        assert torch.equal(loaded.preprocess(image), white)


def test_several_images_can_be_given_as_anything_that_holds_them(folder: Path):
    loaded, images = model.load(folder), [picture(number) for number in range(3)]
    expected = loaded.embed_images(images)
    arrays = np.stack([np.asarray(image) for image in images])
    paths = [folder / f"{number}.png" for number in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    for several in (tuple(images), (image for image in images), arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2), paths):
        torch.testing.assert_close(loaded.embed_images(several), expected)
    torch.testing.assert_close(loaded.embed_images(np.array([str(path) for path in paths])), expected)
    for nothing in ([], (), iter([]), np.zeros((0, 8, 8, 3), np.uint8)):
        assert loaded.embed_images(nothing).shape == (0, shape().embedding)
    texts = ["picture", "set"]
    for several in (tuple(texts), (text for text in texts), np.array(texts), dict.fromkeys(texts)):
        torch.testing.assert_close(loaded.embed_texts(several), loaded.embed_texts(texts))
    assert loaded.embed_texts(iter([])).shape == (0, shape().embedding)


@pytest.mark.parametrize(
    ("give", "error", "told"),
    [
        (lambda it: it.embed_images("frog.jpg"), TypeError, "embed_images takes a list of images, even for a single one: ['frog"),
        (lambda it: it.embed_images(b"content"), TypeError, "embed_images takes a list of images, even for a single one: [it]"),
        (lambda it: it.embed_images(Path("frog.jpg")), TypeError, "embed_images takes a list of images, not a PosixPath"),
        (lambda it: it.embed_images(picture(1)), TypeError, "embed_images takes a list of images, not an Image"),
        (lambda it: it.embed_images(np.zeros((8, 8, 3), np.uint8)), TypeError, "even for a single one"),
        (lambda it: it.embed_images(torch.zeros(3, 8, 8)), TypeError, "even for a single one"),
        (lambda it: it.embed_images(io.BytesIO(b"x")), TypeError, "even for a single one"),
        (lambda it: it.embed_images(None), TypeError, "embed_images takes a list of images, not None"),
        (lambda it: it.embed_images([None]), TypeError, "None is not an image: give a path"),
        (lambda it: it.embed_images([float("nan")]), TypeError, "a number (nan) is not an image"),
        (lambda it: it.embed_images([io.StringIO("x")]), TypeError, "opened in binary mode"),
        (
            lambda it: it.embed_images([np.zeros((3, 8, 8), np.uint8)]),
            ValueError,
            "[3, 8, 8] are not an image: use an array [H, W",
        ),
        (lambda it: it.embed_images([torch.zeros(8, 8, 3)]), ValueError, "are not an image"),
        (lambda it: it.embed_images([np.zeros((0, 8, 3))]), ValueError, "are not an image"),
        (lambda it: it.embed_images([np.array(["a"])]), ValueError, "are not an image"),
        (
            lambda it: it.embed_images([np.array([["a"]])]),
            TypeError,
            "are not an image: give bytes from 0 to 255, or floats from 0",
        ),
        (lambda it: it.embed_images([torch.zeros(8, 8, dtype=torch.complex64)]), TypeError, "is not an image"),
        (
            lambda it: it.embed_images([torch.full((3, 8, 8), float("nan"))]),
            ValueError,
            "float32 go from nan to nan; they",
        ),
        (
            lambda it: it.embed_images([np.full((8, 8, 3), 128.0)]),
            ValueError,
            "from 128 to 128; they must be between 0 and 1",
        ),
        (
            lambda it: it.embed_images([np.full((8, 8, 3), -1)]),
            ValueError,
            "int64 go from -1 to -1; they must be between 0",
        ),
        (lambda it: it.embed_images([b""]), UserError, "it is an empty file"),
        (lambda it: it.embed_images([b"<svg/>"]), UserError, "it is an SVG drawing"),
        (lambda it: it.embed_images(["/a\0b"]), UserError, "null byte"),
        (lambda it: it.embed_images(["/"]), UserError, "image /: Is a directory"),
        (lambda it: it.embed_images([picture(1)], batch_size=0), ValueError, "batch_size=0 must be an integer of at least 1"),
        (lambda it: it.embed_images([], batch_size=-1), ValueError, "batch_size=-1"),
        (lambda it: it.embed_texts(["a"], batch_size=0), ValueError, "batch_size=0"),
        (lambda it: it.embed_texts(["a"], batch_size=1.5), ValueError, "batch_size=1.5"),
        (lambda it: it.embed_texts("a frog"), TypeError, "embed_texts takes a list of texts, even for a single one: ['a frog']"),
        (lambda it: it.embed_texts(None), TypeError, "embed_texts takes a list of texts, not None"),
        (lambda it: it.embed_texts(7), TypeError, "not a number (7)"),
        (lambda it: it.embed_texts(["a", None]), TypeError, "number 1 of it is None"),
        (lambda it: it.embed_texts(["a", float("nan")]), TypeError, "number 1 of it is a number (nan)"),
        (lambda it: it.embed_texts([b"a"]), TypeError, "number 0 of it is a bytes"),
        (lambda it: it.tokenize("a frog"), TypeError, "tokenize takes a list of texts, even for a single one"),
        (lambda it: it.preprocess([picture(1)]), TypeError, "a list is not an image"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder: Path, give: Callable[[Any], object], error: type[Exception], told: str):
    with pytest.raises(error) as caught:
        give(model.load(folder))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_text_can_be_embedded(folder: Path):
    loaded = model.load(folder)
    strange = ["picture \ud83d", "pic\0ture", "", "\u200f", "漢字", "picture " * 100_000]
    rows = loaded.embed_texts(strange)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows[0], loaded.embed_texts(["picture"])[0])


def test_an_image_is_upright_and_over_the_background_of_the_training(folder: Path):
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    white, green = (Image.new("RGB", (20, 20), colour) for colour in ((255, 255, 255), (10, 200, 30)))
    loaded = model.load(folder)
    for image in (clear, as_file(clear, "PNG"), np.asarray(clear)):
        assert torch.equal(loaded.preprocess(image), loaded.preprocess(white))
    values = yaml.safe_load((folder / CONFIG).read_text())
    values["data"]["background"] = [10, 200, 30]
    (folder / CONFIG).write_text(yaml.safe_dump(values))
    assert torch.equal(model.load(folder).preprocess(clear), loaded.preprocess(green))
    turned, exif = picture(1, 30, 30).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(folder / "turned.png", exif=exif)
    expected = loaded.preprocess(picture(1, 30, 30))
    for image in (folder / "turned.png", Image.open(folder / "turned.png"), Image.open(folder / "turned.png").convert("RGB")):
        assert torch.equal(loaded.preprocess(image), expected)


def test_postscript_that_a_user_has_opened_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    loaded, opened = model.load(folder), Image.open(io.BytesIO(as_file(picture(1), "EPS")))

    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    with pytest.raises(UserError, match="it is PostScript"):
        loaded.preprocess(opened)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"device": "nowhere"}, UserError, "device=nowhere cannot be used"),
        ({"device": "cuda:99"}, UserError, "device=cuda:99 cannot be used"),
        ({"dtype": "bf16"}, TypeError, "dtype='bf16' must be a floating-point dtype of torch, such as torch.bfloat16"),
        ({"dtype": torch.int8}, TypeError, "dtype=torch.int8 must be a floating-point dtype"),
    ],
)
def test_a_device_or_dtype_that_cannot_be_is_told(folder: Path, options: dict[str, Any], error: type[Exception], told: str):
    with pytest.raises(error) as caught:
        model.load(folder, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


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
        (lambda folder: (folder / CONFIG).write_text("a: ["), "config.yaml is not the configuration of a trained model"),
        (lambda folder: (folder / CONFIG).write_text("seed: 0"), "config.yaml is not the configuration of a trained model"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "config.yaml is not the configuration of a trained model"),
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
