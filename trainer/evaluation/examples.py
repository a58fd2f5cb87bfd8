"""Some images of an evaluation, and what the model made of them: tables to look at.

The same images each time, whatever the processes and the batches: they are drawn by a hash of their names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import EvaluationBatch
from trainer.distributed.processes import Processes
from trainer.evaluation.ranking import similarity
from trainer.evaluation.shots import Draw
from trainer.reporting.example_tables import Cell, ExampleTable

FOUND = 3
"""How many answers are shown, best first."""
CAPTIONS = 5
"""Most captions of an image that are shown."""


@dataclass(frozen=True)
class _Drawn:
    place: tuple[bytes, str]
    id: str
    image: Tensor
    note: Any


@dataclass
class Sample:
    """At most `most` of the images that are added, batch by batch; none, at no cost, if that is 0."""

    draw: Draw
    most: int
    ids: list[str] = field(default_factory=list)
    """Of all images that were added, in their order."""
    _drawn: list[_Drawn] = field(default_factory=list)

    def add(self, batch: EvaluationBatch, rows: Sequence[int], notes: Iterable[Any] | None = None) -> None:
        """Add these rows of a batch, with something about each that belongs to it."""
        if not self.most:
            return
        for row, note in zip(rows, [None] * len(rows) if notes is None else notes, strict=True):
            name = batch.ids[row]
            self.ids.append(name)
            place = self.draw.place(name)
            if len(self._drawn) < self.most or place < self._drawn[-1].place:
                self._drawn.append(_Drawn(place, name, batch.images[row].clone(), note))
                self._drawn.sort(key=lambda drawn: drawn.place)
                del self._drawn[self.most :]

    def together(self, processes: Processes) -> list[tuple[int, Tensor, Any]]:
        """Those of all ranks: the number of each among all images, rank by rank, the image, and its note. A collective."""
        if not self.most:
            return []
        ids = [name for of_rank in processes.gather_objects(self.ids) for name in of_rank]
        drawn = [one for of_rank in processes.gather_objects(self._drawn) for one in of_rank]
        number = {name: index for index, name in enumerate(ids)}
        return [(number[one.id], one.image, one.note) for one in sorted(drawn, key=lambda one: one.place)[: self.most]]


def best_classes(scores_bc: Tensor, labels_b: Tensor) -> list[tuple[int, int, list[int], list[float]]]:
    """Of each image: its class, at which place the model has it, and the best classes with their scores."""
    place_b = 1 + (scores_bc > scores_bc.gather(1, labels_b[:, None])).sum(1)
    scores_bk, best_bk = scores_bc.topk(min(FOUND, scores_bc.shape[1]), dim=1)
    return list(zip(labels_b.tolist(), place_b.tolist(), best_bk.tolist(), scores_bk.tolist(), strict=True))


def zeroshot_table(drawn: Sequence[tuple[int, Tensor, Any]], classes: Sequence[str]) -> ExampleTable:
    """The image, its class, the best classes with their cosines, and the place of the true one. Notes: of `best_classes`."""
    rows: list[list[Cell]] = []
    hits: list[bool] = []
    for _, image, (label, place, best, scores) in drawn:
        hits.append(place == 1)
        rows.append([image, classes[label], *_answers([classes[index] for index in best], scores), place])
    answers = min(FOUND, len(classes))
    return ExampleTable(["image", "truth", *_headings(answers), "place of the truth"], rows, hits)


def found_for_first_captions(numbers: Sequence[int], owner_t: Tensor, images_nd: Tensor, captions_td: Tensor) -> list[int]:
    """For the first caption of each of these images, the number of the image that is nearest to it."""
    first = [int((owner_t == number).nonzero()[0]) for number in numbers]
    return similarity(captions_td[first], images_nd).argmax(1).tolist()


def retrieval_table(
    drawn: Sequence[tuple[int, Tensor, Any]],
    answers: Sequence[tuple[int, Tensor]],
    images_nd: Tensor,
    captions_td: Tensor,
    captions: Sequence[Sequence[str]],
) -> ExampleTable:
    """The image, its captions, those that are found for it with their cosines, and the place of its first right one; then the
    place that the image has for its first caption, and the image that is found for that, with its caption.

    answers: of each drawn image, the number and the image of `found_for_first_captions`; images_nd, captions_td: all, as unit
    vectors; captions: of each image. A row is a hit if both places are the first.
    """
    texts = [caption for of_image in captions for caption in of_image]
    owner_t = torch.tensor([image for image, of_image in enumerate(captions) for _ in of_image], device=captions_td.device)
    rows: list[list[Cell]] = []
    hits: list[bool] = []
    for (number, image, _), (found, found_image) in zip(drawn, answers, strict=True):
        own_t = owner_t == number
        to_texts_t = similarity(images_nd[number : number + 1], captions_td)[0]
        first = int(own_t.nonzero()[0])
        to_images_n = similarity(captions_td[first : first + 1], images_nd)[0]
        scores, best = to_texts_t.topk(min(FOUND, len(texts)))
        own_place = 1 + int((to_texts_t > to_texts_t[own_t].max()).sum())
        place_for_first = 1 + int((to_images_n > to_images_n[number]).sum())
        hits.append(own_place == place_for_first == 1)
        rows.append(
            [
                image,
                " · ".join(captions[number][:CAPTIONS]),
                *_answers([texts[index] for index in best.tolist()], scores.tolist()),
                own_place,
                place_for_first,
                found_image,
                "(itself)" if found == number else captions[found][0],
            ]
        )
    headings = ["place of its own", "place for its first caption", "image found for that", "its caption"]
    return ExampleTable(["image", "captions", *_headings(min(FOUND, len(texts))), *headings], rows, hits)


def _headings(answers: int) -> list[str]:
    return [heading for number in range(1, answers + 1) for heading in (f"found {number}", f"cosine {number}")]


def _answers(names: Sequence[str], scores: Sequence[float]) -> list[Cell]:
    return [cell for name, score in zip(names, scores, strict=True) for cell in (name, score)]
