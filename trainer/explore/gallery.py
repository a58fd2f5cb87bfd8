"""What is searched: a part of a run's own evaluation set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.shards.patterns import list_shards
from trainer.errors import UserError
from trainer.evaluation.expert_samples import read_classified, read_pairs
from trainer.evaluation.suite import classification_sets, retrieval_key, retrieval_shards


@dataclass(frozen=True)
class Gallery:
    """what: where they are from, in words; images: uint8 `[n, 3, S, S]`, as the model sees them; ids: `shard/key` of each.

    texts: captions or prompts, all different; texts_of: which of them say what is in each image, none for some.
    """

    what: str
    images: Tensor
    ids: list[str]
    texts: list[str]
    texts_of: list[list[int]]

    def said_of(self, image: int) -> list[str]:
        """The captions of an image."""
        return [self.texts[text] for text in self.texts_of[image]]


def read_gallery(config: Config, samples: int) -> Gallery:
    """The first `samples` images of the run's retrieval set, with their captions; without one, its first classification set.

    Of a classification set, as many images of every class, and prompts for texts. config: with its data located.
    Raises UserError for data that cannot be used, and when the configuration names none.
    """
    shards = retrieval_shards(config)
    if shards is not None:
        key = retrieval_key(config)
        pairs = read_pairs(config, list_shards(shards, key), samples, captioned=False)
        return _gallery(key, pairs.images, pairs.ids, pairs.captions, _owned(pairs.owner_t, len(pairs.ids)))
    sets = classification_sets(config.eval.zeroshot)
    if not sets:
        raise UserError("nothing to explore: set data.val=SHARDS, eval.retrieval=SHARDS or eval.zeroshot=FOLDER")
    name, folder = next(iter(sets.items()))
    found = read_classified(config, name, folder, samples)
    templates = len(found.classes.templates)
    first = [[label * templates] for label in found.labels.tolist()]
    return _gallery(f"eval.zeroshot ({name})", found.images, found.ids, found.classes.prompts(), first)


def _owned(owner_t: Tensor, images: int) -> list[list[int]]:
    of_image: list[list[int]] = [[] for _ in range(images)]
    for text, image in enumerate(owner_t.tolist()):
        of_image[image].append(text)
    return of_image


def _gallery(what: str, images: Tensor, ids: list[str], texts: list[str], texts_of: list[list[int]]) -> Gallery:
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    own = [list(dict.fromkeys(number[texts[text]] for text in of_image)) for of_image in texts_of]
    return Gallery(what, images.to(torch.uint8), ids, list(number), own)
