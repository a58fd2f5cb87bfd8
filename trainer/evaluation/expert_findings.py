"""The experts of one model, measured: specialists and atlas together."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.limoe import LIMoE, expert_layers
from model.preprocess import normalise
from model.stream import IMAGE, TEXT
from model.tokenizer import Tokenizer
from trainer.config.schema import Config
from trainer.distributed.processes import ALONE, Processes
from trainer.evaluation.atlas import Embedded, TaskAtlas, make_atlas, tasks_of
from trainer.evaluation.expert_samples import ExpertSamples, Shown
from trainer.evaluation.specialists import Specialists, find_specialists

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """name, step: of the model; shown: what the specialists are shown with; atlas: by task, empty if it was not asked for."""

    name: str
    step: int | None
    shown: Shown
    specialists: dict[int, Specialists]
    atlas: list[TaskAtlas]


@dataclass(frozen=True)
class Looked:
    """A model in evaluation mode with experts to look at, and how it is fed.

    config: of its data, and eval.batch_size; dtype: of the images it takes; processes: those that share it, and the work;
    before_each: called before each batch, on all of them equally often, and may raise to end it.
    """

    model: LIMoE
    tokenizer: Tokenizer
    config: Config
    name: str
    step: int | None = None
    dtype: torch.dtype = torch.float32
    processes: Processes = ALONE
    before_each: Callable[[], None] = lambda: None

    @property
    def batch_size(self) -> int:
        """Images or texts that each process embeds at once."""
        return max(1, self.config.eval.batch_size // self.processes.world)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.scale.log_scale.device

    def prepare(self, batch: Tensor) -> Tensor:
        """A batch of images or of tokens, as the model takes it."""
        self.before_each()
        batch = batch.to(self.device)
        data = self.config.data
        return batch if batch.dtype == torch.int64 else normalise(batch, data.mean, data.std, self.dtype)


def measure_experts(looked: Looked, samples: ExpertSamples, with_atlas: bool) -> Findings:
    """Measure every expert of a model that has some. A collective; every rank gets the result."""
    model, length, batch_size = looked.model, looked.config.model.text_length, looked.batch_size
    prepare, processes = looked.prepare, looked.processes
    shown = samples.shown()
    words = [looked.tokenizer.words(text, length) for text in shown.texts]
    tokens = looked.tokenizer(shown.texts, length)
    specialists = find_specialists(model, shown.images, tokens, words, batch_size, prepare, processes)
    findings = Findings(looked.name, looked.step, shown, specialists, [])
    if not with_atlas:
        return findings
    captions = samples.pairs.captions if samples.pairs is not None else []
    # All words of a caption that the model sees.
    tasks, images, texts = tasks_of(
        samples, [[piece.word for piece in looked.tokenizer.words(caption, length)] for caption in captions]
    )
    experts = {index: layer.num_experts for index, layer in expert_layers(model).items()}
    if processes.is_first:
        _log.info("knocking out %d experts, over %d images and %d texts", sum(experts.values()), len(images), len(texts))

    def told(layer: int, expert: int) -> None:
        if expert == 0 and processes.is_first:
            _log.info("knocking out the experts of block %d", layer)

    findings.atlas.extend(
        make_atlas(
            Embedded(model, IMAGE, images, batch_size, prepare, processes),
            Embedded(model, TEXT, looked.tokenizer(texts, length), batch_size, prepare, processes),
            tasks,
            experts,
            told,
        )
    )
    return findings
