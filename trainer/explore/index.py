"""What a model makes of a gallery: an embedding of each image and text, and a card of each expert; kept for the next time."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.limoe import LIMoE, expert_layers
from model.preprocess import normalise
from model.stream import MODALITIES
from trainer.checkpoint.trained import Trained
from trainer.errors import reason
from trainer.evaluation.routing_trace import trace
from trainer.evaluation.specialists import Specialists
from trainer.explore.gallery import Gallery
from trainer.files import write_whole

FORMAT = 1
"""Counts up when an index of an older version would say something else."""
PATCHES = 16
"""Patches, and words, on the card of an expert."""
KEPT = 16
"""Most indexes in the cache; older ones are deleted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    """images_nd, texts_td: unit vectors, float32 on the CPU; cards: of each expert of each expert layer, plain values."""

    images_nd: Tensor
    texts_td: Tensor
    cards: dict[int, list[dict[str, Any]]]


def index_gallery(trained: Trained, gallery: Gallery, folder: Path, told: Callable[[], object] = lambda: None) -> Index:
    """The index of a gallery, from the folder if it is there, else made and left there.

    told: called before it is made, which can take minutes.
    """
    path = folder / f"{key_of(trained, gallery)}.safetensors"
    found = _read(path)
    if found is None:
        told()
        found = make_index(trained, gallery)
        _write(path, found)
    return found


def make_index(trained: Trained, gallery: Gallery) -> Index:
    """Embed and route a gallery, in batches of eval.batch_size."""
    model, tokenizer = trained.model, trained.tokenizer
    size, length = trained.config.eval.batch_size, model.config.text_length
    experts = {
        index: Specialists(layer.num_experts, model.config.patch, PATCHES) for index, layer in expert_layers(model).items()
    }
    images_nd, texts_td = [], []
    for start in range(0, len(gallery.images), size):
        images = gallery.images[start : start + size]
        output, layers = trace(model, images=as_input(trained, images))
        images_nd.append(output.images)
        for index, layer in layers.items():
            experts[index].add(layer, images=images, first_image=start)
    for start in range(0, len(gallery.texts), size):
        texts = gallery.texts[start : start + size]
        output, layers = trace(model, texts=as_input(trained, tokenizer(texts, length)))
        texts_td.append(output.texts)
        for index, layer in layers.items():
            experts[index].add(layer, words=[tokenizer.words(text, length) for text in texts], first_text=start)
    cards = {index: [_card(layer, expert) for expert in range(layer.experts)] for index, layer in experts.items()}
    return Index(_joined(images_nd, model), _joined(texts_td, model), cards)


def _joined(rows: list[Tensor | None], model: LIMoE) -> Tensor:
    nothing = torch.empty(0, model.config.embedding)
    return torch.cat([nothing, *(of_batch.float().cpu() for of_batch in rows if of_batch is not None)])


def as_input(trained: Trained, batch: Tensor) -> Tensor:
    """A batch of images (uint8) or tokens (int64) to what the model takes, on its device."""
    batch = batch.to(trained.model.scale.log_scale.device)
    data = trained.config.data
    return batch if batch.dtype == torch.int64 else normalise(batch, data.mean, data.std, torch.float32)


def key_of(trained: Trained, gallery: Gallery) -> str:
    """What an index depends on, in one word: the weights and what the model is, the tokenizer, and the gallery."""
    config = trained.config
    settings = [FORMAT, asdict(config.model), asdict(config.router), list(config.data.mean), list(config.data.std)]
    digest = hashlib.sha256(json.dumps([*settings, gallery.texts]).encode())
    digest.update(trained.tokenizer.model)
    for name, value in [*sorted(trained.model.state_dict().items()), ("gallery", gallery.images)]:
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _card(layer: Specialists, expert: int) -> dict[str, Any]:
    """share, gate: of the tokens of each modality, and their mean; patches, words: those with the largest gates."""
    return {
        "share": {name: round(float(layer.share(name)[expert]), 6) for name in MODALITIES},
        "gate": {name: round(float(layer.mean_gate(name)[expert]), 6) for name in MODALITIES},
        "patches": [
            {"image": patch.image, "row": patch.row, "column": patch.column, "gate": round(patch.gate, 6)}
            for patch in layer.patches(expert)
        ],
        "words": [{"word": sure.word, "text": sure.text, "gate": round(sure.gate, 6)} for sure in layer.sure_words(expert)],
        "typical": [
            {
                "word": typical.word,
                "count": round(typical.count, 3),
                "share": round(typical.share, 6),
                "lift": round(typical.lift, 6),
            }
            for typical in layer.words(expert, PATCHES)
        ],
    }


def _read(path: Path) -> Index | None:
    """None for a file that is missing or damaged: it is made again."""
    try:
        with safe_open(path, "pt") as kept:
            cards = json.loads(kept.metadata()["cards"])
            return Index(
                kept.get_tensor("images"), kept.get_tensor("texts"), {int(layer): of_layer for layer, of_layer in cards.items()}
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, index: Index) -> None:
    content = save({"images": index.images_nd, "texts": index.texts_td}, {"cards": json.dumps(index.cards)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda kept: -kept.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as problem:
        _log.warning("%s cannot be written (%s): the next start embeds everything again", path, reason(problem))
