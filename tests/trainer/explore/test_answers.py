"""What is shown is what the model does: the nearest by its own embeddings, and its own routing of every patch and word."""

import base64
import io

import pytest
import torch
from PIL import Image

from model.config import RouterConfig
from model.preprocess import normalise
from model.tokenizer import Tokenizer
from tests.model import reference
from tests.trainer.explore.made import EXPERTS, IMAGES, LENGTH, PATCH, SIZE, made_trained
from trainer.checkpoint.trained import Trained
from trainer.errors import UserError
from trainer.evaluation.routing_trace import trace
from trainer.explore.answers import Explorer
from trainer.explore.gallery import Gallery
from trainer.explore.index import make_index

PATCHES = (SIZE // PATCH) ** 2
WORDS = "picture number 3 of a small set"


def explorer_of(trained: Trained, gallery: Gallery) -> Explorer:
    return Explorer(trained, gallery, make_index(trained, gallery))


def pixels(trained: Trained, images: torch.Tensor) -> torch.Tensor:
    return normalise(images, trained.config.data.mean, trained.config.data.std, torch.float32)


def file_of(image: torch.Tensor, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(content, kind)
    return content.getvalue()


def test_the_nearest_are_those_with_the_largest_cosines(explorer: Explorer, trained: Trained, gallery: Gallery):
    found = explorer.words(WORDS)
    with torch.no_grad():
        query = trained.model(texts=trained.tokenizer([WORDS], LENGTH)).texts[0]
        images = [float(trained.model(images=pixels(trained, image[None])).images[0] @ query) for image in gallery.images]
        texts = [float(trained.model(texts=trained.tokenizer([text], LENGTH)).texts[0] @ query) for text in gallery.texts]
    expected = sorted(range(IMAGES), key=lambda image: -images[image])
    assert [picture["number"] for picture in found["pictures"]] == expected
    assert [picture["cosine"] for picture in found["pictures"]] == pytest.approx(sorted(images, reverse=True), abs=1e-4)
    assert [text["cosine"] for text in found["texts"]] == pytest.approx(sorted(texts, reverse=True), abs=1e-4)
    assert found["texts"][0] == {"text": WORDS, "cosine": pytest.approx(1, abs=1e-4)}
    assert found["pictures"][0]["said"] == gallery.said_of(expected[0])


def test_every_word_has_the_expert_that_the_router_sends_it_to(explorer: Explorer, trained: Trained):
    found = explorer.words(WORDS)
    (layer,) = found["layers"]
    assert layer["layer"] == 1 and layer["success"] == {"text": 1.0}
    assert "".join(found["pieces"]) == "▁" + WORDS.replace(" ", "▁")
    # The tokens in the order of the pieces, and the end: what enters the layer, seen by its router.
    seen: list[torch.Tensor] = []
    router = trained.model.towers[0].blocks[1].mlp.router
    handle = router.register_forward_hook(lambda _, __, logits: seen.append(logits))
    with torch.no_grad():
        trained.model(texts=trained.tokenizer([WORDS], LENGTH))
    handle.remove()
    gates = seen[0].softmax(-1)[: len(found["pieces"]) + 1]
    assert [token[0]["expert"] for token in layer["tokens"]] == gates.argmax(-1).tolist()
    assert [token[0]["gate"] for token in layer["tokens"]] == pytest.approx(gates.amax(-1).tolist(), abs=1e-4)
    assert all(len(token) == 1 and token[0]["kept"] for token in layer["tokens"])


def test_a_picture_of_the_gallery_leaves_itself_out(explorer: Explorer, gallery: Gallery):
    found = explorer.picture(3)
    assert found["said"] == gallery.said_of(3) and found["id"] == "val-0.tar/000003"
    assert sorted(picture["number"] for picture in found["pictures"]) == [number for number in range(IMAGES) if number != 3]
    assert len(found["layers"][0]["tokens"]) == PATCHES
    shown = Image.open(io.BytesIO(base64.b64decode(found["shown"].removeprefix("data:image/png;base64,"))))
    assert shown.tobytes() == gallery.images[3].permute(1, 2, 0).contiguous().numpy().tobytes()
    assert explorer.picture(IMAGES - 1)["said"] == []


def test_an_image_file_is_prepared_as_in_evaluation(explorer: Explorer, gallery: Gallery):
    wide = torch.cat([gallery.images[5][:, :, :3] * 0, gallery.images[5], gallery.images[5][:, :, :3] * 0], 2)
    for content in (file_of(gallery.images[5]), file_of(wide)):
        found = explorer.image(content)
        assert found["pictures"][0] == {"number": 5, "cosine": pytest.approx(1, abs=1e-4), "said": gallery.said_of(5)}
        assert found["layers"] == explorer.picture(5)["layers"]


def test_as_in_training_the_largest_gates_of_a_batch_get_the_slots(tokenizer: Tokenizer, gallery: Gallery):
    trained = made_trained(tokenizer, RouterConfig(capacity_factor=0.5))
    explorer = explorer_of(trained, gallery)
    assert explorer.about()["competing"] == 6, "as many pairs as a step has"
    # The same batch, told by a trace in evaluation, which drops nothing; then slots are given out one at a time.
    images, texts = gallery.images[:6].clone(), [gallery.texts[gallery.texts_of[image][0]] for image in range(6)]
    images[0], first_text = gallery.images[8], texts[0]
    _, layers = trace(trained.model, pixels(trained, images), tokenizer(texts, LENGTH))
    layer = layers[1]
    tokens = len(layer.valid_n)
    places = reference.capacity(tokens, EXPERTS, 1, "0.5")
    slots = reference.assign(
        layer.expert_nk.tolist(), layer.gate_nk.tolist(), layer.valid_n.tolist(), [0] * tokens, 1, EXPERTS, places, "gate"
    )
    found = explorer.picture(8, "training")["layers"][0]
    assert [token[0]["kept"] for token in found["tokens"]] == [slot[0] >= 0 for slot in slots[:PATCHES]]
    assert [token[0]["expert"] for token in found["tokens"]] == layer.expert_nk[:PATCHES, 0].tolist()
    assert 0 < sum(not token[0]["kept"] for token in found["tokens"]) < PATCHES
    kept_of_images = sum(slot[0] >= 0 for slot in slots[: 6 * PATCHES])
    assert found["success"]["image"] == pytest.approx(kept_of_images / (6 * PATCHES), abs=1e-4)

    # A text takes the place of the first one, and nothing of it stays behind.
    said = explorer.words(first_text, "training")["layers"][0]
    assert len(said["tokens"]) == len(tokenizer.pieces(first_text, LENGTH)) + 1 and set(said["success"]) == {"image", "text"}
    after = explorer.picture(8)["layers"][0]
    assert all(token[0]["kept"] for token in after["tokens"]) and after["success"] == {"image": 1.0}
    assert explorer.picture(8, "training")["pictures"] == explorer.picture(8)["pictures"]


def test_several_experts_of_a_token_come_by_gate(tokenizer: Tokenizer, gallery: Gallery):
    explorer = explorer_of(made_trained(tokenizer, RouterConfig(top_k=2)), gallery)
    for token in explorer.picture(0)["layers"][0]["tokens"]:
        assert len(token) == 2 and token[0]["gate"] >= token[1]["gate"] and token[0]["expert"] != token[1]["expert"]


def test_where_experts_choose_a_token_shows_those_that_took_it(tokenizer: Tokenizer, gallery: Gallery):
    trained = made_trained(tokenizer, RouterConfig(choice="expert", capacity_factor=1.0))
    tokens = explorer_of(trained, gallery).picture(0)["layers"][0]["tokens"]
    kept = [choice for token in tokens for choice in token if choice["kept"]]
    assert len(kept) == PATCHES, "every expert fills its slots"
    without = [token for token in tokens if not token[0]["kept"]]
    assert without and all(len(token) == 1 for token in without)
    assert all(choice["kept"] for token in tokens if token[0]["kept"] for choice in token)


@pytest.mark.parametrize("towers", [1, 2])
def test_a_dense_model_has_retrieval_alone(tokenizer: Tokenizer, gallery: Gallery, towers: int):
    explorer = explorer_of(made_trained(tokenizer, expert_layers=[], towers=towers), gallery)
    about = explorer.about()
    assert about["layers"] == {} and about["colours"] == () and about["competing"] == 0
    for slots in ("evaluation", "training"):
        found = explorer.words(WORDS, slots)
        assert found["layers"] == [] and found["texts"][0]["text"] == WORDS and len(found["pictures"]) == IMAGES
    with pytest.raises(UserError, match="block 1 has no experts"):
        explorer.expert(1, 0)


def test_the_card_of_an_expert_has_what_it_took_with_the_largest_gates(explorer: Explorer, trained: Trained, gallery: Gallery):
    cards = [explorer.expert(1, expert) for expert in range(EXPERTS)]
    for modality in ("image", "text"):
        assert sum(card["share"][modality] for card in cards) == pytest.approx(1, abs=1e-4)
    best = max((patch for card in cards for patch in card["patches"]), key=lambda patch: patch["gate"])
    gates = [[token[0]["gate"] for token in explorer.picture(image)["layers"][0]["tokens"]] for image in range(IMAGES)]
    largest = max(max(of_image) for of_image in gates)
    assert best["gate"] == pytest.approx(largest, abs=1e-4)
    assert gates[best["image"]][best["row"] * (SIZE // PATCH) + best["column"]] == pytest.approx(largest, abs=1e-4)
    words = [word for card in cards for word in card["words"]]
    assert {word["text"] for word in words} <= set(gallery.texts) and all(word["word"] in word["text"] for word in words)


def test_what_the_tokenizer_cannot_read_is_said(explorer: Explorer):
    found = explorer.words(" ".join(["number"] * 20))
    assert found["cut"] > 0 and len(found["pieces"]) == LENGTH - 1 == len(found["layers"][0]["tokens"]) - 1
    assert explorer.words("数")["known"] is False and explorer.words(WORDS)["known"] is True
    assert explorer.words("<b>number</b>")["text"] == "<b>number</b>", "shown as it is: the page adds it as text"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda explorer: explorer.words(" \n\t"), "type some words"),
        (lambda explorer: explorer.image(b"GIF8 not really"), "image cannot be decoded: it is a damaged GIF"),
        (lambda explorer: explorer.picture(IMAGES), "there is no picture 10: they go from 0 to 9"),
        (lambda explorer: explorer.png(-1), "there is no picture -1"),
        (lambda explorer: explorer.expert(0, 0), "block 0 has no experts"),
        (lambda explorer: explorer.expert(1, EXPERTS), "there is no expert 4"),
        (lambda explorer: explorer.words("a", "other"), "slots: choose evaluation or training"),
    ],
)
def test_what_cannot_be_answered_is_one_line(explorer: Explorer, ask, told: str):
    with pytest.raises(UserError, match=told) as problem:
        ask(explorer)
    assert "\n" not in str(problem.value)
