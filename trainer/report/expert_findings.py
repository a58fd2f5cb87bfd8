"""The experts of a trained model, measured, and all of it as plain numbers."""

from typing import Any

from torch import Tensor

from model.stream import MODALITIES
from trainer.checkpoint.trained import Trained
from trainer.errors import UserError
from trainer.evaluation.atlas import KNOCK_OUTS, TaskAtlas
from trainer.evaluation.expert_findings import Findings, Looked, measure_experts
from trainer.evaluation.expert_samples import ExpertSamples
from trainer.evaluation.specialists import Specialists

WORDS = 20
"""Typical words of an expert among the numbers."""
DIGITS = 6


def find(trained: Trained, samples: ExpertSamples, with_atlas: bool) -> Findings:
    """Measure every expert of a model. Raises UserError for one without expert layers."""
    check_experts(trained)
    looked = Looked(trained.model, trained.tokenizer, trained.config, trained.name, trained.step)
    return measure_experts(looked, samples, with_atlas)


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
