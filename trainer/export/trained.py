"""A trained model, what its tokens use, and what leaving parts of it out saves and costs."""

from dataclasses import dataclass, replace

from torch import Tensor

from model.limoe import LIMoE
from model.trim import Trim, trim
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.identity import check_identity
from trainer.checkpoint.load import check_sound
from trainer.checkpoint.trained import unfilled
from trainer.config.checks import check_model
from trainer.config.compose import load_config, to_config
from trainer.config.schema import Config
from trainer.data.sources import load_tokenizer
from trainer.distributed.device import choose_device
from trainer.distributed.processes import ALONE
from trainer.errors import UserError
from trainer.evaluation.encoder import ModelEncoder
from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.setting import Setting
from trainer.evaluation.suite import RETRIEVAL_ROWS, retrieval_key, retrieval_shards
from trainer.export.examples import Examples
from trainer.export.request import DTYPES, Export, check_experts
from trainer.export.usage import choices_lost, count_choices, most_used
from trainer.export.weights import build, read_weights
from trainer.training.inputs import locate_data


@dataclass(frozen=True)
class Trimmed:
    """A model of which something may have been left out.

    weights: what is left, by name; parameters: their number; lost: by expert layer, how many of the set's choices fell on experts
    that were left out; recall: on the run's own retrieval set, by metric, empty if it was not measured.
    """

    kept: Trim
    weights: dict[str, Tensor]
    parameters: int
    lost: dict[int, int]
    recall: dict[str, float]

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())

    def model(self, config: Config) -> LIMoE:
        """What is left, of the model of a run; it shares the weights."""
        model = trim(unfilled(config), self.kept)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)

    @property
    def told(self) -> str:
        """What is left, to follow what it was, such as `, text alone, 3 experts of layer 1`; empty for a whole model."""
        modality = "" if self.kept.modality is None else f", {self.kept.modality} alone"
        layers = ", ".join(
            f"{len(kept)} expert{'s' * (len(kept) > 1)} of layer {layer}" for layer, kept in self.kept.experts.items()
        )
        return f"{modality}{', ' if layers else ''}{layers}"


class Trained:
    """The model of a run on one device, whole. If experts are to be left out, the choices that the set's tokens make are counted.

    counts: by expert layer, choices of each expert, int64 `[E]`; unmeasured: why there is no recall.
    """

    def __init__(self, export: Export, config: Config, weights: dict[str, Tensor]) -> None:
        """config: the run's. Raises UserError for a set that cannot be read."""
        self.export, self.config = export, config
        self.unmeasured = "all experts were kept"
        self.counts: dict[int, Tensor] = {}
        self._weights = weights
        self._model = build(config, weights)
        recall: dict[str, float] = {}
        if export.experts is not None:
            self._processes = replace(ALONE, device=choose_device("auto", 0))
            self._model.to(self._processes.device)
            self._tokenizer = load_tokenizer(config, export.checkpoints[-1] / TOKENIZER)
            examples = Examples(export.experts, config, self._tokenizer, DTYPES[export.dtype])
            self.counts = count_choices(self._model, examples.batches(export.modality), self._processes.device)
            recall = self._measure(self._model)
        self.whole = Trimmed(Trim(), weights, _parameters(self._model), {}, recall)

    @classmethod
    def open(cls, export: Export) -> "Trained":
        """From the checkpoints. Raises UserError for damaged ones, for those of several models, and for an impossible request."""
        for checkpoint in export.checkpoints:
            check_sound(checkpoint, ALONE)
        config = to_config(load_config(export.checkpoints[-1] / CONFIG))
        check_model(config)
        for checkpoint in export.checkpoints[:-1]:
            check_identity(checkpoint, config, "average checkpoints of one model")
        if export.experts is not None:
            check_experts(export.experts, config)
        return cls(export, config, read_weights(export, config))

    def trimmed(self, number: int | None = None) -> Trimmed:
        """Without what the export leaves out; number: experts to keep in each layer, None for all that are used."""
        kept = Trim(self.export.modality, most_used(self.counts, number))
        model = build(self.config, self._weights, kept)
        weights, parameters = dict(model.state_dict()), _parameters(model)
        recall = self.whole.recall
        if kept.experts and recall:
            recall = self._measure(model.to(self._processes.device))
        return Trimmed(kept, weights, parameters, choices_lost(self.counts, kept.experts), recall)

    def _measure(self, model: LIMoE) -> dict[str, float]:
        """Recall on the run's retrieval set; what the model does not serve any more, the whole one embeds. {} if impossible."""
        try:
            located = locate_data(self.config, ALONE)
            shards = retrieval_shards(located)
            if shards is None:
                raise UserError("the run has no retrieval set (eval.retrieval, data.val)")
            setting = Setting.of(located, self._encoder(model), self._tokenizer, self._processes)
            found = retrieval(shards, setting, retrieval_key(located))
        except UserError as problem:  # the data of the run may be elsewhere; the export does not depend on them
            self.unmeasured = str(problem)
            return {}
        return {metric: found[metric] for metric in RETRIEVAL_ROWS}

    def _encoder(self, model: LIMoE) -> "TwoModels":
        dtype = DTYPES[self.export.dtype]
        whole = ModelEncoder(self._model, self.config.data, dtype)
        one = ModelEncoder(model, self.config.data, dtype)
        modality = self.export.modality
        return TwoModels(whole if modality == "text" else one, whole if modality == "image" else one)


@dataclass(frozen=True)
class TwoModels:
    """trainer.evaluation.encoder.Encoder that embeds images with one model and texts with another."""

    of_images: ModelEncoder
    of_texts: ModelEncoder

    def images(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, D]`."""
        return self.of_images.images(images)

    def features(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, width]`."""
        return self.of_images.features(images)

    def texts(self, tokens: Tensor) -> Tensor:
        """int64 `[b, T]` -> float32 `[b, D]`."""
        return self.of_texts.texts(tokens)


def _parameters(model: LIMoE) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
