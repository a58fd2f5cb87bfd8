"""What the page asks, answered in plain values: the nearest pictures and texts, and who took which patch and word."""

import base64
import io
import threading
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.limoe import Output, expert_layers
from model.preprocess import REDUCING_GAP, centre_crop, decode_image
from model.stream import IMAGE, MODALITIES, TEXT
from model.text import clean_text
from trainer.checkpoint.trained import Trained
from trainer.errors import UserError
from trainer.evaluation.routing_trace import LayerTrace, slots_as_in_training, trace
from trainer.explore.colours import expert_colours
from trainer.explore.gallery import Gallery
from trainer.explore.index import Index, as_input

NEAREST = 12
"""Pictures, and texts, that are shown as the nearest."""
SUGGESTED = 3
COMPETING_PAIRS = 64
"""Most pairs of a batch in which tokens compete for slots as in training."""
SLOTS = ("evaluation", "training")
DIGITS = 5


class Explorer:
    """A model with its gallery. One question at a time; may be asked from several threads."""

    def __init__(self, trained: Trained, gallery: Gallery, index: Index) -> None:
        self._trained = trained
        self._gallery = gallery
        self._index = index
        self._one_at_a_time = threading.Lock()
        config = trained.config
        self._texts_nl = trained.tokenizer(gallery.texts, config.model.text_length)
        most = min(COMPETING_PAIRS, max(1, config.train.batch_size // config.train.accumulate))
        # Pairs as in training: images that have a text, each with its first one.
        self._competing = [image for image, texts in enumerate(gallery.texts_of) if texts][:most]

    def about(self) -> dict[str, Any]:
        """What does not depend on a question."""
        config, layers = self._trained.config, expert_layers(self._trained.model)
        router = config.router
        return {
            "name": self._trained.name,
            "model": config.model.name,
            "gallery": {"what": self._gallery.what, "images": len(self._gallery.ids), "texts": len(self._gallery.texts)},
            "image_size": config.model.image_size,
            "columns": config.model.image_size // config.model.patch,
            "text_length": config.model.text_length,
            "layers": {index: layer.num_experts for index, layer in layers.items()},
            "colours": expert_colours(max((layer.num_experts for layer in layers.values()), default=0)),
            "router": {
                "choice": router.choice,
                "top_k": router.top_k * config.model.expert_granularity,
                "priority": router.priority,
                "capacity_factor": router.capacity_factor,
            },
            "competing": len(self._competing) if layers else 0,
            "suggested": self._gallery.texts[:: max(1, len(self._gallery.texts) // SUGGESTED)][:SUGGESTED],
        }

    def words(self, text: str, slots: str = SLOTS[0]) -> dict[str, Any]:
        """A text. Raises UserError for one without any words."""
        text = clean_text(text)
        if not text:
            raise UserError("type some words")
        tokenizer, length = self._trained.tokenizer, self._trained.config.model.text_length
        encoded = tokenizer.encode([text], length)
        asked = {
            "kind": "text",
            "text": text,
            "pieces": tokenizer.pieces(text, length),
            "cut": max(0, encoded.counts[0] - length),
            "known": encoded.known[0],
        }
        return asked | self._answer(TEXT, encoded.ids, slots)

    def image(self, content: bytes, slots: str = SLOTS[0]) -> dict[str, Any]:
        """An image file. Raises UserError for one that cannot be decoded, or that is too large."""
        config = self._trained.config
        size = config.model.image_size
        with self._one_at_a_time:  # one at a time is decoded, too: a picture can be large
            image = centre_crop(decode_image(content, round(REDUCING_GAP * size), tuple(config.data.background)), size)
        return {"kind": "image", "said": []} | self._answer(IMAGE, image[None], slots)

    def picture(self, number: int, slots: str = SLOTS[0]) -> dict[str, Any]:
        """A picture of the gallery. Raises UserError for a number that none has."""
        self._check(number, len(self._gallery.ids), "picture")
        asked = {
            "kind": "image",
            "number": number,
            "id": _short(self._gallery.ids[number]),
            "said": self._gallery.said_of(number),
        }
        return asked | self._answer(IMAGE, self._gallery.images[number : number + 1], slots, leave_out=number)

    def expert(self, layer: int, expert: int) -> dict[str, Any]:
        """The card of an expert, with the texts that its words are in. Raises UserError for one that is not there."""
        if layer not in self._index.cards:
            raise UserError(f"block {layer} has no experts")
        self._check(expert, len(self._index.cards[layer]), "expert")
        card = self._index.cards[layer][expert]
        words = [{**word, "text": self._gallery.texts[word["text"]]} for word in card["words"]]
        return {"layer": layer, "expert": expert} | card | {"words": words}

    def png(self, number: int) -> bytes:
        """A picture of the gallery as a file. Raises UserError for a number that none has."""
        self._check(number, len(self._gallery.ids), "picture")
        return _png(self._gallery.images[number])

    @staticmethod
    def _check(number: int, count: int, what: str) -> None:
        if not 0 <= number < count:
            raise UserError(f"there is no {what} {number}: they go from 0 to {count - 1}" if count else f"there is no {what}")

    def _answer(self, modality: int, asked: Tensor, slots: str, leave_out: int | None = None) -> dict[str, Any]:
        """asked: one image uint8 `[1, 3, S, S]` or one text int64 `[1, L]`; leave_out: a picture that is not to be found."""
        if slots not in SLOTS:
            raise UserError(f"slots: choose {' or '.join(SLOTS)}")
        with self._one_at_a_time:
            output, layers = self._traced(modality, asked)
            # What is near is a matter of the model as it is evaluated, whatever the slots.
            if slots == "training" and layers and self._competing:
                layers = self._traced_among_pairs(modality, asked)
        embedded = output.images if modality == IMAGE else output.texts
        assert embedded is not None
        query_d = embedded[0].float().cpu()
        pictures = [
            {"number": number, "cosine": cosine, "said": self._gallery.said_of(number)}
            for number, cosine in _nearest(self._index.images_nd @ query_d, leave_out)
        ]
        texts = [
            {"text": self._gallery.texts[number], "cosine": cosine} for number, cosine in _nearest(self._index.texts_td @ query_d)
        ]
        by_experts, model = self._trained.config.router.choice == "expert", self._trained.config.model
        tokens = model.image_patches if modality == IMAGE else model.text_length  # a class token has no place in the image
        return {
            "shown": f"data:image/png;base64,{base64.b64encode(_png(asked[0])).decode()}" if modality == IMAGE else None,
            "pictures": pictures,
            "texts": texts,
            "layers": [{"layer": index} | _routed(layer, modality, by_experts, tokens) for index, layer in layers.items()],
        }

    def _traced(self, modality: int, asked: Tensor) -> tuple[Output, dict[int, LayerTrace]]:
        ready = as_input(self._trained, asked)
        model = self._trained.model
        return trace(model, images=ready) if modality == IMAGE else trace(model, texts=ready)

    def _traced_among_pairs(self, modality: int, asked: Tensor) -> dict[int, LayerTrace]:
        """In a batch of pairs of the gallery, where it takes the place of the first image or text."""
        images = self._gallery.images[self._competing]
        texts = self._texts_nl[[self._gallery.texts_of[image][0] for image in self._competing]]
        given = [asked, images[1:]] if modality == IMAGE else [asked, texts[1:]]
        images, texts = (torch.cat(given), texts) if modality == IMAGE else (images, torch.cat(given))
        with slots_as_in_training(self._trained.model):
            return trace(self._trained.model, as_input(self._trained, images), as_input(self._trained, texts))[1]


def _nearest(cosine_n: Tensor, leave_out: int | None = None) -> list[tuple[int, float]]:
    """The largest cosines, largest first, with their numbers."""
    order = cosine_n.argsort(descending=True, stable=True)[: NEAREST + 1].tolist()
    return [(number, round(float(cosine_n[number]), DIGITS)) for number in order if number != leave_out][:NEAREST]


def _routed(layer: LayerTrace, modality: int, by_experts: bool, shown: int) -> dict[str, Any]:
    """How the first image or text of a batch was routed: of each of its tokens the experts, gates, and who took it.

    by_experts: whether experts choose; shown: how many of its tokens; success: of all tokens of each modality in the batch, the
    share that some expert took.
    """
    of_query = (layer.modality_n == modality) & (layer.sample_n == 0) & (layer.position_n < shown) & layer.valid_n
    columns = [values[of_query].tolist() for values in (layer.expert_nk, layer.gate_nk, layer.kept_nk)]
    tokens = [_choices(experts, gates, kept, by_experts) for experts, gates, kept in zip(*columns, strict=True)]
    success = {}
    for number, name in enumerate(MODALITIES):
        there = int((layer.valid_n & (layer.modality_n == number)).sum())
        if there:
            success[name] = round(int(layer.taken_nk(number).any(1).sum()) / there, DIGITS)
    return {"tokens": tokens, "success": success}


def _choices(experts: list[int], gates: list[float], kept: list[bool], by_experts: bool) -> list[dict[str, Any]]:
    """A token's choices, those with a slot first, then by gate. Where experts choose: those that took it, else the best."""
    ranked = sorted(zip(kept, gates, experts, strict=True), key=lambda choice: (not choice[0], -choice[1], choice[2]))
    if by_experts:
        ranked = ranked[: max(1, sum(kept))]
    return [{"expert": expert, "gate": round(gate, DIGITS), "kept": taken} for taken, gate, expert in ranked]


def _short(identity: str) -> str:
    """`/data/val-0.tar/000012` as `val-0.tar/000012`: the page need not tell where the shards are."""
    return "/".join(identity.split("/")[-2:])


def _png(image: Tensor) -> bytes:
    """uint8 `[3, H, W]` as a file."""
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(content, "PNG")
    return content.getvalue()
