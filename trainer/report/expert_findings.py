"""The experts of one model, measured: specialists and atlas together, and all of it as plain numbers."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.limoe import expert_layers
from model.preprocess import normalise
from model.stream import IMAGE, MODALITIES, TEXT
from trainer.checkpoint.trained import Trained
from trainer.errors import UserError
from trainer.evaluation.atlas import KNOCK_OUTS, Embedded, TaskAtlas, make_atlas, tasks_of
from trainer.evaluation.expert_samples import ExpertSamples, Shown
from trainer.evaluation.specialists import Specialists, find_specialists

WORDS = 20
"""Typical words of an expert among the numbers."""
DIGITS = 6

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """name, step: of the model; shown: what the specialists are shown with; atlas: by task, empty if it was not asked for."""

    name: str
    step: int | None
    shown: Shown
    specialists: dict[int, Specialists]
    atlas: list[TaskAtlas]


def find(trained: Trained, samples: ExpertSamples, with_atlas: bool) -> Findings:
    """Measure every expert of a model. Raises UserError for one without expert layers."""
    model, config = trained.model, trained.config
    check_experts(trained)
    device = model.scale.log_scale.device
    length, batch_size = config.model.text_length, config.eval.batch_size

    def prepare(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        return batch if batch.dtype == torch.int64 else normalise(batch, config.data.mean, config.data.std, torch.float32)

    shown = samples.shown()
    words = [trained.tokenizer.words(text, length) for text in shown.texts]
    tokens = trained.tokenizer(shown.texts, length)
    findings = Findings(
        trained.name, trained.step, shown, find_specialists(model, shown.images, tokens, words, batch_size, prepare), []
    )
    if not with_atlas:
        return findings
    captions = samples.pairs.captions if samples.pairs is not None else []
    # All words of a caption that the model sees.
    tasks, images, texts = tasks_of(
        samples, [[piece.word for piece in trained.tokenizer.words(caption, length)] for caption in captions]
    )
    experts = {index: layer.num_experts for index, layer in expert_layers(model).items()}
    total = sum(experts.values())
    _log.info("knocking out %d experts, over %d images and %d texts", total, len(images), len(texts))

    def told(layer: int, expert: int) -> None:
        if expert == 0:
            _log.info("knocking out the experts of block %d", layer)

    findings.atlas.extend(
        make_atlas(
            Embedded(model, IMAGE, images, batch_size, prepare),
            Embedded(model, TEXT, trained.tokenizer(texts, length), batch_size, prepare),
            tasks,
            experts,
            told,
        )
    )
    return findings


def check_experts(trained: Trained) -> None:
    """Raise UserError for a model without expert layers."""
    if not trained.config.model.expert_layers:
        raise UserError(
            f"{trained.name}: {trained.config.model.name} has no expert layers, so there is nothing to see (experts=true is for "
            f"models with model.expert_layers)"
        )


def numbers(findings: Findings) -> dict[str, Any]:
    """All that was measured, as JSON holds it. Costs are differences from the baselines, positive where the model gets worse."""
    shown = findings.shown
    return {
        "name": findings.name,
        "step": findings.step,
        "shown_with": {"what": shown.what, "images": len(shown.images), "texts": len(shown.texts)},
        "tasks": {atlas.task.name: _task(atlas) for atlas in findings.atlas},
        "layers": {f"layer{index:02d}": _layer(index, layer, findings) for index, layer in findings.specialists.items()},
    }


def _task(atlas: TaskAtlas) -> dict[str, Any]:
    groups = {
        kind: [
            {"name": name, "queries": int(count), "baseline": _rounded(value)}
            for name, count, value in zip(grouping.names, grouping.counts.tolist(), atlas.groups[kind].tolist(), strict=True)
        ]
        for kind, grouping in atlas.task.groupings.items()
    }
    return {"measure": atlas.task.measure, "queries": atlas.queries, "baseline": _rounded(atlas.baseline), "groups": groups}


def _layer(index: int, layer: Specialists, findings: Findings) -> dict[str, Any]:
    return {
        "experts": layer.experts,
        "tokens": dict(layer.tokens),
        "kept": dict(layer.kept),
        "share": {name: _rounded(layer.share(name)) for name in MODALITIES},
        "mean_gate": {name: _rounded(layer.mean_gate(name)) for name in MODALITIES},
        "words": [
            [
                {
                    "word": typical.word,
                    "count": _rounded(typical.count),
                    "share": _rounded(typical.share),
                    "lift": _rounded(typical.lift),
                }
                for typical in layer.words(expert, WORDS)
            ]
            for expert in range(layer.experts)
        ],
        "patches": [
            [
                {"image": findings.shown.ids[patch.image], "row": patch.row, "column": patch.column, "gate": _rounded(patch.gate)}
                for patch in layer.patches(expert)
            ]
            for expert in range(layer.experts)
        ],
        "costs": {atlas.task.name: _costs(index, atlas) for atlas in findings.atlas},
    }


def _costs(index: int, atlas: TaskAtlas) -> dict[str, Any]:
    """By what the expert is knocked out for: overall a number an expert, by group a row an expert, in the groups' order."""
    costs = atlas.layers[index]
    groups = {kind: {name: _rounded(of_kind[name]) for name in KNOCK_OUTS} for kind, of_kind in costs.groups.items()}
    return {"overall": {name: _rounded(costs.overall[name]) for name in KNOCK_OUTS}, **groups}


def _rounded(values: Any) -> Any:
    """As short as JSON needs."""
    plain = values.tolist() if isinstance(values, Tensor) else values
    return [_rounded(value) for value in plain] if isinstance(plain, list) else round(float(plain), DIGITS)
