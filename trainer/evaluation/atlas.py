"""What is lost without each expert: it is knocked out, and the model is evaluated again, by modality, class and word.

A picture of what an expert takes tells what the router sends there; this tells what the model needs it for. Legend: E experts,
q queries of a task, g groups of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE
from trainer.distributed.processes import ALONE, Processes
from trainer.evaluation.expert_samples import Classified, ExpertSamples, Pairs
from trainer.evaluation.rank_rows import RankRows, filled
from trainer.evaluation.ranking import hits, similarity
from trainer.evaluation.retrieval import SCORES_AT_ONCE
from trainer.evaluation.routing_trace import LayerTrace, knocked_out, trace

KNOCK_OUTS = ("image", "text", "both")
"""The tokens for which an expert is knocked out."""
LEAST_CAPTIONS = 5
"""Captions that a word must be in to be a row of the atlas."""


class Embedded:
    """The embeddings of some images or texts, and what they become without an expert."""

    def __init__(
        self,
        model: LIMoE,
        modality: int,
        inputs: Tensor,
        batch_size: int,
        prepare: Callable[[Tensor], Tensor] = lambda batch: batch,
        processes: Processes = ALONE,
    ) -> None:
        """inputs: all of them, row by row, on the CPU; batch_size: at most, on each rank; prepare: a batch of them to what the
        model takes; processes: those that share the model, and the work. This is a collective, and so is `without`.
        """
        self._model, self._modality, self._inputs = model, modality, inputs
        self._batch_size, self._prepare = batch_size, prepare
        self._layers, self._ranks = expert_layers(model), RankRows(len(inputs), processes)
        embedded: list[Tensor] = []
        uses: dict[int, list[Tensor]] = {layer: [] for layer in self._layers}
        for rows, _ in self._ranks.batches(batch_size):
            output, traces = trace(model, **self._given(rows))
            embedded.append(self._embeddings(output.images, output.texts))
            for layer, found in traces.items():
                uses[layer].append(_uses(found, modality, len(rows), self._layers[layer].num_experts))
        self._mine = torch.cat(embedded)
        self.rows = self._ranks.gather(self._mine)
        """Float32 `[n, D]`, unit vectors."""
        self.uses = {layer: self._ranks.gather(torch.cat(of_layer).to(torch.uint8)).bool() for layer, of_layer in uses.items()}
        """By layer, bool `[n, E]`: whether the expert took any token of the image or text."""

    @torch.no_grad()
    def without(self, layer: int, expert: int) -> Tensor:
        """The embeddings with an expert of a layer knocked out, `[n, D]`. What it took no token of is not computed again."""
        touched = self.uses[layer][:, expert].nonzero().flatten().tolist()
        mine = [row for row in touched if row in self._ranks.mine]
        # As many calls on each rank: those of the one that has most to do.
        most = max(sum(row in self._ranks.of(rank) for row in touched) for rank in range(self._ranks.processes.world))
        changed, first = self._mine.clone(), self._ranks.mine.start
        with knocked_out(self._layers[layer], expert):
            for rows, count in filled(mine, most, self._batch_size):
                output = self._model(**self._given(rows))
                places = [row - first for row in rows[:count]]
                changed[places] = self._embeddings(output.images, output.texts)[:count]
        return self._ranks.gather(changed)

    def _given(self, rows: list[int]) -> dict[str, Tensor]:
        return {"images" if self._modality == IMAGE else "texts": self._prepare(self._inputs[rows])}

    def _embeddings(self, images: Tensor | None, texts: Tensor | None) -> Tensor:
        found = images if self._modality == IMAGE else texts
        assert found is not None  # it was given
        return found.float()


def _uses(found: LayerTrace, modality: int, samples: int, experts: int) -> Tensor:
    taken_nk = found.taken_nk(modality)
    uses = torch.zeros(samples, experts, dtype=torch.bool, device=taken_nk.device)
    uses[found.sample_n.unsqueeze(1).expand_as(taken_nk)[taken_nk], found.expert_nk[taken_nk]] = True
    return uses


@dataclass(frozen=True)
class Grouping:
    """Which queries belong to which group, such as a class or a word; a query may belong to several. member_gq: float64."""

    names: list[str]
    member_gq: Tensor

    @property
    def counts(self) -> Tensor:
        """Queries of each group, float64 `[g]`."""
        return self.member_gq.sum(1)

    def mean(self, values_q: Tensor) -> Tensor:
        """The mean over each group, `[g]`; 0 for one without queries."""
        return self.member_gq @ values_q / self.counts.clamp(min=1)


@dataclass(frozen=True)
class Task:
    """Something that the model can do more or less well.

    score: embeddings of all images and of all texts to how well each query is served, float64 `[q]`, from 0 to 1;
    measure: what that is, in words.
    """

    name: str
    measure: str
    score: Callable[[Tensor, Tensor], Tensor]
    groupings: dict[str, Grouping]


@dataclass(frozen=True)
class Costs:
    """What a task loses in one layer without each expert (positive: it gets worse), by which tokens it is knocked out for.

    overall: `[E]` each; groups: by grouping, `[E, g]` each.
    """

    overall: dict[str, Tensor]
    groups: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class TaskAtlas:
    """The atlas of one task. baseline: its score with all experts; groups: that of each group, by grouping; layers: the costs."""

    task: Task
    queries: int
    baseline: float
    groups: dict[str, Tensor]
    layers: dict[int, Costs] = field(default_factory=dict)


def make_atlas(
    images: Embedded,
    texts: Embedded,
    tasks: Sequence[Task],
    experts: Mapping[int, int],
    told: Callable[[int, int], None] = lambda layer, expert: None,
) -> list[TaskAtlas]:
    """Knock out each expert of each layer in turn, and score every task again.

    experts: how many each layer has; told: called before each.
    """
    scored = [task.score(images.rows, texts.rows) for task in tasks]
    atlases = [
        TaskAtlas(
            task,
            len(whole_q),
            float(whole_q.mean()),
            {kind: grouping.mean(whole_q) for kind, grouping in task.groupings.items()},
        )
        for task, whole_q in zip(tasks, scored, strict=True)
    ]
    for layer, count in experts.items():
        lost: list[list[dict[str, Tensor]]] = [[] for _ in tasks]  # of each task, of each expert, by knock-out: [q]
        for expert in range(count):
            told(layer, expert)
            other_images, other_texts = images.without(layer, expert), texts.without(layer, expert)
            pairs = dict(
                zip(
                    KNOCK_OUTS,
                    [(other_images, texts.rows), (images.rows, other_texts), (other_images, other_texts)],
                    strict=True,
                )
            )
            for task, whole_q, of_task in zip(tasks, scored, lost, strict=True):
                of_task.append({knocked: whole_q - task.score(*pair) for knocked, pair in pairs.items()})
        for atlas, of_task in zip(atlases, lost, strict=True):
            atlas.layers[layer] = _costs(atlas.task, of_task)
    return atlases


def _costs(task: Task, of_experts: Sequence[Mapping[str, Tensor]]) -> Costs:
    return Costs(
        {knocked: torch.stack([lost[knocked].mean() for lost in of_experts]) for knocked in KNOCK_OUTS},
        {
            kind: {knocked: torch.stack([grouping.mean(lost[knocked]) for lost in of_experts]) for knocked in KNOCK_OUTS}
            for kind, grouping in task.groupings.items()
        },
    )


def tasks_of(samples: ExpertSamples, words: Sequence[Sequence[str]]) -> tuple[list[Task], Tensor, list[str]]:
    """The tasks that samples allow, over the images `[n, 3, H, W]` and the texts that are returned with them.

    Each classification set by class and by each of its attributes, and retrieval by word. words: those of each caption.
    """
    tasks: list[Task] = []
    images: list[Tensor] = []
    texts: list[str] = []
    for classified in samples.classified:
        rows = slice(sum(map(len, images)), sum(map(len, images)) + len(classified.images))
        prompts = classified.classes.prompts()
        tasks.append(_classification(classified, rows, slice(len(texts), len(texts) + len(prompts))))
        images.append(classified.images)
        texts += prompts
    if samples.pairs is not None:
        rows = slice(sum(map(len, images)), sum(map(len, images)) + len(samples.pairs.images))
        tasks.append(_retrieval(samples.pairs, words, rows, slice(len(texts), len(texts) + len(samples.pairs.captions))))
        images.append(samples.pairs.images)
        texts += samples.pairs.captions
    return tasks, torch.cat(images), texts


def _classification(classified: Classified, rows: slice, prompts: slice) -> Task:
    """Top-1 accuracy of each image, as trainer.evaluation.zeroshot judges it."""
    dataset, labels_q = classified.classes, classified.labels
    classes = len(dataset.classes)

    def score(images_nd: Tensor, texts_td: Tensor) -> Tensor:
        classes_cd = normalize(texts_td[prompts].view(classes, len(dataset.templates), -1).mean(1), dim=-1)
        scores_qc = similarity(images_nd[rows], classes_cd)
        right_qc = labels_q.to(scores_qc.device)[:, None] == torch.arange(classes, device=scores_qc.device)
        return hits(scores_qc, right_qc, [1])[0].cpu()

    groupings = {"class": _by_value(labels_q.tolist(), dict(enumerate(dataset.classes)))}
    for attribute, values in dataset.attributes.items():
        groupings[attribute] = _by_value([values[label] for label in labels_q.tolist()], {value: value for value in values})
    name = "zeroshot" if classified.name == "default" else f"zeroshot_{classified.name}"
    return Task(name, "zero-shot top-1", score, groupings)


def _retrieval(pairs: Pairs, words: Sequence[Sequence[str]], rows: slice, captions: slice) -> Task:
    """The reciprocal of the place that a caption's own image has among all, ties as randomly ordered."""
    owner_q = pairs.owner_t

    def score(images_nd: Tensor, texts_td: Tensor) -> Tensor:
        found = []
        gallery_md = images_nd[rows]
        chunk = max(1, SCORES_AT_ONCE // len(gallery_md))
        for queries_qd, own_q in zip(texts_td[captions].split(chunk), owner_q.split(chunk), strict=True):
            scores_qm = similarity(queries_qd, gallery_md)
            own_q1 = scores_qm.gather(1, own_q.to(scores_qm.device)[:, None])
            above_q, level_q = (scores_qm > own_q1).sum(1), (scores_qm == own_q1).sum(1)
            found.append(1 / (1 + above_q.double() + (level_q.double() - 1) / 2))
        return torch.cat(found).cpu()

    return Task("retrieval", "reciprocal rank of a caption's image", score, {"word": _by_word(words)})


def _by_value(values: Sequence[object], names: Mapping[object, str]) -> Grouping:
    """Queries with the same value; the groups in the order of `names`."""
    member = [[float(value == key) for value in values] for key in names]
    return Grouping(list(names.values()), torch.tensor(member, dtype=torch.float64))


def _by_word(words: Sequence[Sequence[str]]) -> Grouping:
    """Captions with the word, for words in LEAST_CAPTIONS or more of them but not in all, by spelling."""
    having: dict[str, set[int]] = {}
    for caption, of_caption in enumerate(words):
        for word in of_caption:
            having.setdefault(word, set()).add(caption)
    names = sorted(word for word, captions in having.items() if word and LEAST_CAPTIONS <= len(captions) < len(words))
    member = torch.zeros(len(names), len(words), dtype=torch.float64)
    for row, word in enumerate(names):
        member[row, list(having[word])] = 1
    return Grouping(names, member)
