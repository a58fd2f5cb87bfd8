"""An export of one modality, or of some experts: what is in it, what it embeds, and what its card says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import model
from model.config import ModelConfig
from model.errors import UserError
from model.layout import CARD
from model.limoe import expert_layers
from model.pretrained import Pretrained
from tests.trainer.data.shards_on_disk import pair, write_shard
from tests.trainer.export.runs import config, initial, write_run
from trainer.config.schema import Config
from trainer.evaluate import read_arguments as evaluate_arguments
from trainer.export.__main__ import export_newest

PAIRS = 12
UPS = "towers.0.blocks.{}.mlp.experts.up"
SETTINGS = ([], ["weights=ema"], ["average=last:2"], ["dtype=bf16"])


def settings(folder: Path) -> Config:
    """Three blocks, two of them with twelve experts, of which 12 pairs do not use all."""
    made = config()
    made.model.layers, made.model.expert_layers, made.model.experts = 3, [0, 2], 12
    made.data.val, made.data.workers, made.eval.batch_size = str(folder / "val.tar"), 0, 5
    return made


def decided(made: Config, seed: int) -> dict[str, Tensor]:
    """Weights under which modalities differ and routers prefer some experts."""
    weights = initial(made, seed)
    for name, value in weights.items():
        if name.endswith("position"):
            value.add_(torch.randn(value.shape[-1], generator=torch.Generator().manual_seed(seed + ("tokens" in name))))
    return weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two checkpoints, `run`, its val.tar, and texts in words.txt."""
    folder = tmp_path_factory.mktemp("place")
    write_shard(folder / "val.tar", [pair(number) for number in range(PAIRS)])
    (folder / "words.txt").write_text("\n".join(texts()) + "\n\n")
    write_run(folder / "run", settings(folder), (10, 20), decided)
    return folder


def texts() -> list[str]:
    return [f"picture number {number} of a small set" for number in range(PAIRS)]


def images() -> list[bytes]:
    return [pair(number)["jpg"] for number in range(PAIRS)]


def exported(place: Path, name: str, *arguments: str) -> tuple[Pretrained, str, str]:
    """The loaded export, its card, and what was told."""
    output = place / name
    told = export_newest([f"run={place / 'run'}", f"output={output}", *arguments])
    card = output / CARD
    return model.load(output), card.read_text() if card.exists() else "", "\n".join(told)


def kept_in(place: Path, name: str) -> dict[int, list[int]]:
    return yaml.safe_load((place / name / "config.yaml").read_text())["model"]["trimmed"]["experts"]


def used(limoe: Pretrained, *modalities: str) -> dict[int, list[int]]:
    """By layer, the experts of the set's tokens, each text and image on its own."""
    chosen: dict[int, set[int]] = {layer: set() for layer in expert_layers(limoe.module)}
    for text in texts() if "text" in modalities else []:
        tokens = limoe.tokenize([text])
        for layer, assignment in limoe.module(texts=tokens).assignments.items():
            chosen[layer] |= set(assignment.expert_nk[tokens[0] != 0].flatten().tolist())
    for image in images() if "image" in modalities else []:
        for layer, assignment in limoe.module(images=limoe.preprocess(image)[None]).assignments.items():
            chosen[layer] |= set(assignment.expert_nk.flatten().tolist())
    return {layer: sorted(experts) for layer, experts in chosen.items()}


def recall_at_1(images_nd: Tensor, texts_nd: Tensor) -> list[str]:
    """From image to text and back, as the card writes it."""
    right = torch.arange(len(images_nd))
    cosines = images_nd @ texts_nd.T
    return [f"{(scores.argmax(1) == right).double().mean():.1%}" for scores in (cosines, cosines.T)]


@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda arguments: " ".join(arguments) or "newest")
def test_texts_alone_with_the_experts_they_use_are_embedded_as_before(place: Path, arguments: list[str]):
    whole, card, _ = exported(place, "whole", *arguments)
    assert "left out" not in card
    small, card, told = exported(place, "small", *arguments, "modality=text", f"experts=used:{place}/words.txt")
    wanted = used(whole, "text")
    assert kept_in(place, "small") == {layer: kept for layer, kept in wanted.items() if len(kept) < 12} != {}
    assert torch.equal(small.embed_texts(texts(), 5), whole.embed_texts(texts(), 5))
    found = load_file(place / "small" / "model.safetensors")
    assert [found[UPS.format(layer)].shape for layer in wanted] == [(len(kept), 16, 24) for kept in wanted.values()]
    assert not [name for name in found if name.startswith(("patches", "heads.image"))]
    assert small.dtype == whole.dtype == next(iter(small.module.heads.parameters())).dtype
    assert "text alone" in told and "text alone" in card
    for layer, kept in wanted.items():
        assert re.search(rf"\| {layer} \| {', '.join(map(str, kept))} \| {len(kept)} of 12 \| 0 of \d+ \|", card)
    assert "to the last bit" in card


def test_the_card_says_what_is_lost(place: Path):
    whole, _, _ = exported(place, "whole")
    small, card, told = exported(place, "small", "modality=text", "experts=top:1")
    sizes = [sum(value.nbytes for value in load_file(place / name / "model.safetensors").values()) for name in ("whole", "small")]
    assert f"| bytes of the weights, fp32 | {sizes[0]:,} | {sizes[1]:,} |" in card
    assert "photos: weights of step 20" in card and "modality=text experts=top:1:val" in card
    # In the first block nothing has been changed yet, so that the counts can be taken from the whole model.
    tokens = whole.tokenize(texts())
    chosen = whole.module(texts=tokens).assignments[0].expert_nk.flatten()[(tokens != 0).flatten()]
    counts = torch.bincount(chosen, minlength=12)
    best = int(counts.argmax())
    assert f"| 0 | {best} | 1 of 12 | {int(counts.sum() - counts[best])} of {int(counts.sum())} |" in card
    before, after = whole.embed_texts(texts()), small.embed_texts(texts())
    assert not torch.allclose(before, after)
    rows = zip(recall_at_1(whole.embed_images(images()), before), recall_at_1(whole.embed_images(images()), after), strict=True)
    for what, (was, now) in zip(("image to text R@1", "text to image R@1"), rows, strict=True):
        assert f"| {what} | {was} | {now} |" in card
    assert "1 expert of layer 0" in told


def test_images_alone(place: Path):
    whole, _, _ = exported(place, "whole")
    small, card, _ = exported(place, "small", "modality=image", "experts=used:val")
    assert kept_in(place, "small") == {layer: kept for layer, kept in used(whole, "image").items() if len(kept) < 12}
    assert torch.equal(small.embed_images(images(), 5), whole.embed_images(images(), 5))
    assert small.embed_images([]).shape == (0, 8)
    with pytest.raises(UserError, match=r"^this export holds only image \(modality=image\): for texts, export the run without"):
        small.embed_texts(["a frog"])
    assert "The texts are embedded by the whole model." in card


def test_texts_alone_refuse_images_before_they_are_read(place: Path):
    small, card, _ = exported(place, "small", "modality=text")
    with pytest.raises(UserError, match=r"^this export holds only text \(modality=text\): for images, export the run without"):
        small.embed_images(["/nowhere.jpg"])
    assert kept_in(place, "small") == {}
    assert "Experts" not in card and "Evaluation of the whole model" in card
    assert small.scale == exported(place, "whole")[0].scale


def test_both_modalities_with_the_experts_that_either_uses(place: Path):
    whole, _, _ = exported(place, "whole")
    small, card, _ = exported(place, "small", f"experts=used:{place}/val.tar")
    assert kept_in(place, "small") == {layer: kept for layer, kept in used(whole, "image", "text").items() if len(kept) < 12}
    assert torch.equal(small.embed_images(images()), whole.embed_images(images()))
    assert torch.equal(small.embed_texts(texts()), whole.embed_texts(texts()))
    assert "embedded by the whole model" not in card


def test_a_table_of_sizes_and_recall_writes_nothing(place: Path):
    before = sorted(path.name for path in place.iterdir())
    table = export_newest([f"run={place / 'run'}", "experts=top:1,12,3", "modality=text"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["whole model", "used", "top:12", "top:3", "top:1"]
    assert [row[1] for row in rows[2:]][-3:] == ["12, 12", "3, 3", "1, 1"]
    sizes = [int(row[4].replace(",", "")) for row in rows[2:]]
    assert sizes[0] > sizes[2] > sizes[3] > sizes[4]
    assert rows[2][5:] == rows[3][5:] == rows[4][5:], "recall without a loss"
    assert rows[2][2] == rows[3][2] == "0.0%, 0.0%" != rows[6][2]
    assert sorted(path.name for path in place.iterdir()) == before
    _, card, _ = exported(place, "small", "modality=text", "experts=top:3")
    assert f"| {rows[5][4]} |" in card and f"| image to text R@1 | {rows[2][5]} | {rows[5][5]} |" in card


def test_a_reader_from_before_names_what_it_does_not_know(place: Path):
    exported(place, "small", "modality=text")
    with pytest.raises(TypeError, match="'trimmed'"):
        ModelConfig(**yaml.safe_load((place / "small" / "config.yaml").read_text())["model"])


def test_an_export_is_not_evaluated_and_says_so(place: Path):
    exported(place, "small", "modality=text")
    with pytest.raises(
        UserError, match=r"is an export, which has no checkpoints; give the run directory that it was exported from"
    ):
        evaluate_arguments([f"run={place / 'small'}"])


def test_a_card_is_replaced_but_nobody_elses_page(place: Path):
    exported(place, "small", "modality=text")
    assert "replaced the export" in exported(place, "small")[2]
    assert "modality=text" not in (place / "small" / CARD).read_text()
    (place / "small" / CARD).write_text("<!-- written by trainer.export -->\n\n# An export from before\n")
    assert "replaced the export" in exported(place, "small")[2]
    (place / "small" / CARD).write_text("# Mine\n")
    with pytest.raises(UserError, match=r"contains other files \(README.md\)"):
        exported(place, "small")
    (place / "small" / CARD).unlink()


def test_a_run_whose_data_are_gone_can_be_exported(tmp_path: Path, place: Path):
    write_run(tmp_path / "run", settings(tmp_path), (10,), decided)
    told = export_newest([f"run={tmp_path / 'run'}", "modality=text", f"experts=used:{place}/words.txt"])
    assert "text alone" in told[1]
    assert f"Recall was not measured: data.val: no shards match; {tmp_path}/val.tar does" in (
        (tmp_path / "run" / "export" / CARD).read_text()
    )
    with pytest.raises(UserError, match=r"data.val: no shards match"):
        export_newest([f"run={tmp_path / 'run'}", "modality=text", "experts=used"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["modality=sound"], "modality=sound: choose image or text"),
        (["experts=some"], "experts=some: write experts=used or experts=top:N"),
        (["experts=4"], "experts=4: write experts=used or experts=top:N"),
        (["experts=top"], "'' is not how many experts to keep"),
        (["experts=top:val"], "'val' is not how many experts to keep"),
        (["experts=top:0"], "'0' is not how many experts to keep"),
        (["experts=used:"], "the set to count on is missing"),
        (["experts=top:2:"], "the set to count on is missing"),
        (["experts=top:13"], "a layer has only 12 experts"),
        (["experts=top:1,2", "output=/x"], "several numbers only print a table"),
        (["experts=used:PLACE/words.txt"], "a text file has no images; name shards, or add modality=text"),
        (["experts=used:PLACE/none.txt", "modality=text"], "none.txt cannot be read (No such file or directory)"),
        (["experts=used:PLACE/none-{0..3}.tar"], "no shards match"),
        (["experts=used:PLACE/empty.txt", "modality=text"], "the set contains no text"),
        (["experts=used:PLACE/latin.txt", "modality=text"], "latin.txt is not UTF-8"),
    ],
)
def test_a_mistake_is_told_in_one_line(place: Path, arguments: list[str], told: str):
    (place / "empty.txt").write_text(" \n\n")
    (place / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError) as caught:
        export_newest([f"run={place / 'run'}", *(argument.replace("PLACE", str(place)) for argument in arguments)])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({"model.expert_layers": []}, ["experts=used"], "has no expert layers; leave experts= out"),
        (
            {"router.choice": "expert", "router.aux.load": 0.0},
            ["experts=used"],
            "each expert takes tokens of every image",
        ),
        (
            {"router.top_k": 2, "model.expert_granularity": 2},
            ["experts=top:3"],
            "fewer than the 4 experts that each token",
        ),
    ],
)
def test_a_model_whose_experts_cannot_be_left_out_says_why(tmp_path: Path, changes, arguments: list[str], told: str):
    made = config()
    for key, value in changes.items():
        owner, name = (made.model if key.startswith("model") else made.router), key.split(".")[-1]
        setattr(made.router.aux if "aux" in key else owner, name, value)
    write_run(tmp_path, made, (10,))
    with pytest.raises(UserError, match=told):
        export_newest([f"run={tmp_path}", *arguments])
    export_newest([f"run={tmp_path}", "modality=text"])
    whole = export_newest([f"run={tmp_path}", f"output={tmp_path / 'whole'}"])
    assert whole
    assert torch.equal(*(model.load(tmp_path / name).embed_texts(texts()) for name in ("export", "whole")))
