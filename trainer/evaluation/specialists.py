"""What each expert takes: its share of either modality's tokens, its typical words, the patches it is surest of.

Sums over the samples that were added, and a bounded number of patches; which batches they came in makes no difference.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE, MODALITIES, TEXT
from model.tokenizer import WordPiece
from trainer.distributed.processes import ALONE, Processes
from trainer.evaluation.rank_rows import RankRows
from trainer.evaluation.routing_trace import LayerTrace, trace

PATCHES = 8
"""Patches to show of an expert by default, each from another image; and words, each another one."""
CONTEXT = 2
"""Patches around a shown one on every side, where they are small beside the image; at least one."""
LEAST_COUNT = 5.0
"""Occurrences of a word with an expert below which its lift is chance."""


@dataclass(frozen=True)
class TypicalWord:
    """A word of an expert. count: occurrences with this expert, a piece of a word being a part of one; share: of all the word's
    occurrences; lift: how many times as frequent the word is among the expert's as among all (1: no more than elsewhere)."""

    word: str
    count: float
    share: float
    lift: float


@dataclass(frozen=True)
class SureWord:
    """A word with the largest gate that the expert took a piece of it with. text: index of the text it was in."""

    gate: float
    word: str
    text: int


@dataclass(frozen=True)
class SurePatch:
    """A patch with its gate. image: index of the image; crop: uint8 `[3, S, S]`, the patch and what is around it.

    top, left, side: where the patch is in the crop, in pixels.
    """

    gate: float
    image: int
    row: int
    column: int
    crop: Tensor
    top: int
    left: int
    side: int


class Specialists:
    """The experts of one layer."""

    def __init__(self, experts: int, patch: int, patches: int = PATCHES) -> None:
        """patch: side of a patch in pixels; patches: most patches, and most sure words, to keep of an expert."""
        self.tokens = dict.fromkeys(MODALITIES, 0)
        """Tokens by modality, without pads."""
        self.kept = dict.fromkeys(MODALITIES, 0)
        """Those of them that some expert took."""
        self._taken_me = torch.zeros(len(MODALITIES), experts, dtype=torch.int64)
        self._gates_me = torch.zeros(len(MODALITIES), experts, dtype=torch.float64)
        self._word_e: dict[str, Tensor] = defaultdict(partial(torch.zeros, experts, dtype=torch.float64))
        self._word: dict[str, float] = defaultdict(float)
        self._patches: list[list[SurePatch]] = [[] for _ in range(experts)]
        self._sure_words: list[dict[str, SureWord]] = [{} for _ in range(experts)]
        self._patch = patch
        self._most = patches

    @property
    def experts(self) -> int:
        """How many there are."""
        return self._taken_me.shape[1]

    def share(self, modality: str) -> Tensor:
        """Float64 `[E]`: which share of the modality's tokens each expert took. Their sum is at most the choices of a token."""
        return self._taken_me[MODALITIES.index(modality)].double() / max(1, self.tokens[modality])

    def taken(self, modality: str) -> Tensor:
        """Int64 `[E]`: tokens of the modality that each expert took."""
        return self._taken_me[MODALITIES.index(modality)]

    def mean_gate(self, modality: str) -> Tensor:
        """Float64 `[E]`: the mean gate of those tokens, 0 for none."""
        row = MODALITIES.index(modality)
        return self._gates_me[row] / self._taken_me[row].clamp(min=1)

    def words(self, expert: int, most: int, least_count: float = LEAST_COUNT) -> list[TypicalWord]:
        """The expert's typical words, more frequent there than elsewhere: the largest lift first, then by count and spelling."""
        every, here = sum(self._word.values()), sum(float(taken[expert]) for taken in self._word_e.values())
        found = []
        for word, taken_e in self._word_e.items():
            count, total = float(taken_e[expert]), self._word[word]
            if count >= least_count - 1e-6:
                lift = (count / here) / (total / every)
                if lift > 1 + 1e-6:
                    found.append(TypicalWord(word, count, count / total, lift))
        return sorted(found, key=lambda typical: (-round(typical.lift, 6), -round(typical.count, 6), typical.word))[:most]

    def sure_words(self, expert: int) -> list[SureWord]:
        """The words that the expert took with its largest gates, largest first, no word twice."""
        return sorted(self._sure_words[expert].values(), key=lambda sure: (-sure.gate, sure.text, sure.word))

    def patches(self, expert: int) -> list[SurePatch]:
        """The patches that the expert took with its largest gates, largest first, no two of one image."""
        return self._patches[expert]

    def merge(self, other: "Specialists") -> None:
        """Add what was found for other samples of the same layer."""
        for name in MODALITIES:
            self.tokens[name] += other.tokens[name]
            self.kept[name] += other.kept[name]
        self._taken_me += other._taken_me
        self._gates_me += other._gates_me
        for word, taken_e in other._word_e.items():
            self._word_e[word] += taken_e
            self._word[word] += other._word[word]
        for kept, others in zip(self._patches, other._patches, strict=True):
            self._keep_best(kept, others)
        for expert, words in enumerate(other._sure_words):
            self._keep_surest(expert, words.values())

    def add(
        self,
        trace: LayerTrace,
        images: Tensor | None = None,
        words: Sequence[Sequence[WordPiece]] = (),
        first_image: int = 0,
        first_text: int = 0,
    ) -> None:
        """Add the tokens of one traced batch.

        images: uint8 `[B, 3, H, W]`, as they were before normalisation; words: of each text of the batch, what its tokens are
        pieces of (Tokenizer.words); first_image, first_text: index of the batch's first one among all.
        """
        for modality, name in enumerate(MODALITIES):
            taken_nk = trace.taken_nk(modality)
            self.tokens[name] += int((trace.valid_n & (trace.modality_n == modality)).sum())
            self.kept[name] += int(taken_nk.any(1).sum())
            experts = trace.expert_nk[taken_nk].cpu()
            self._taken_me[modality] += torch.bincount(experts, minlength=self.experts)
            self._gates_me[modality].index_add_(0, experts, trace.gate_nk[taken_nk].double().cpu())
        if images is not None:
            self._add_patches(trace, images.cpu(), first_image)
        if words:
            self._add_words(trace, words, first_text)

    def _add_words(self, trace: LayerTrace, words: Sequence[Sequence[WordPiece]], first_text: int) -> None:
        expert_nk, gate_nk, taken_nk = (of_all.tolist() for of_all in (trace.expert_nk, trace.gate_nk, trace.taken_nk(TEXT)))
        sample_n, position_n = trace.sample_n.tolist(), trace.position_n.tolist()
        found: list[list[SureWord]] = [[] for _ in range(self.experts)]
        for token in ((trace.modality_n == TEXT) & trace.valid_n).nonzero().flatten().tolist():
            pieces = words[sample_n[token]]
            if position_n[token] >= len(pieces) or not pieces[position_n[token]].word:  # the end of the text, a blank
                continue
            piece = pieces[position_n[token]]
            self._word[piece.word] += 1 / piece.pieces
            for expert, gate, taken in zip(expert_nk[token], gate_nk[token], taken_nk[token], strict=True):
                if not taken:
                    continue
                self._word_e[piece.word][expert] += 1 / piece.pieces
                found[expert].append(SureWord(gate, piece.word, first_text + sample_n[token]))
        for expert, words_of_expert in enumerate(found):
            self._keep_surest(expert, words_of_expert)

    def _keep_surest(self, expert: int, words: Iterable[SureWord]) -> None:
        sure = self._sure_words[expert]
        for word in words:
            if word.word not in sure or word.gate > sure[word.word].gate:
                sure[word.word] = word
        self._sure_words[expert] = {word.word: word for word in self.sure_words(expert)[: self._most]}

    def _add_patches(self, trace: LayerTrace, images: Tensor, first_image: int) -> None:
        columns = images.shape[-1] // self._patch
        of_images = (trace.modality_n == IMAGE).cpu()
        taken_nk, gate_nk, expert_nk = (
            values.cpu()[of_images] for values in (trace.taken_nk(IMAGE), trace.gate_nk.double(), trace.expert_nk)
        )
        for expert, kept in enumerate(self._patches):
            gate_bl = torch.where(taken_nk & (expert_nk == expert), gate_nk, -1.0).amax(1).view(len(images), -1)
            gate_bl = gate_bl[:, : columns * columns]  # behind the patches there may be a class token
            best_b, place_b = gate_bl.max(1)
            for image in best_b.argsort(descending=True, stable=True)[: self._most].tolist():
                gate = float(best_b[image])
                if gate < 0 or (len(kept) == self._most and gate <= kept[-1].gate):
                    break
                row, column = divmod(int(place_b[image]), columns)
                self._keep_best(kept, [self._cut(gate, first_image + image, images[image], row, column)])

    def _keep_best(self, kept: list[SurePatch], others: Sequence[SurePatch]) -> None:
        kept.extend(others)
        kept.sort(key=lambda patch: (-patch.gate, patch.image))
        del kept[self._most :]

    def _cut(self, gate: float, number: int, image: Tensor, row: int, column: int) -> SurePatch:
        size, side = image.shape[-1], self._patch
        around = max(1, min(CONTEXT, (size // side - 1) // 4))
        window = min(size, (2 * around + 1) * side)
        # At the edge of the image the window moves inwards, and the patch out of its middle.
        top, left = (max(0, min(size - window, (place - around) * side)) for place in (row, column))
        crop = image[:, top : top + window, left : left + window].clone()
        return SurePatch(gate, number, row, column, crop, row * side - top, column * side - left, side)


def find_specialists(
    model: LIMoE,
    images: Tensor,
    texts: Tensor,
    words: Sequence[Sequence[WordPiece]],
    batch_size: int,
    prepare: Callable[[Tensor], Tensor],
    processes: Processes = ALONE,
) -> dict[int, Specialists]:
    """The experts of each expert layer, by its index, over images uint8 `[n, 3, H, W]` and texts int64 `[t, L]` on the CPU.

    words: of each text, what its tokens are pieces of; batch_size: at most, on each rank; prepare: a batch of images or texts to
    what the model takes; processes: those that share the model, and the work. A collective, with the result on every rank.
    """

    def nobody() -> dict[int, Specialists]:
        return {index: Specialists(layer.num_experts, model.config.patch) for index, layer in expert_layers(model).items()}

    found, together = nobody(), nobody()
    for rows, count in RankRows(len(images), processes).batches(batch_size):
        for index, traced in trace(model, images=prepare(images[rows]))[1].items():
            found[index].add(traced.first(count), images=images[rows], first_image=rows[0])
    for rows, count in RankRows(len(texts), processes).batches(batch_size):
        for index, traced in trace(model, texts=prepare(texts[rows]))[1].items():
            found[index].add(traced.first(count), words=[words[row] for row in rows], first_text=rows[0])
    for of_rank in processes.gather_objects(found):
        for index, layer in together.items():
            layer.merge(of_rank[index])
    return together
