"""The head of a card, which the Hugging Face Hub reads: what it is, where it is found, and its results.

https://huggingface.co/docs/hub/model-cards; results as in https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from model.layout import LIBRARY
from trainer.config.schema import Config
from trainer.evaluation.suite import classification_sets, row_names
from trainer.export.request import Page
from trainer.export.scores import Scores

TASKS = {None: "zero-shot-image-classification", "text": "feature-extraction", "image": "image-feature-extraction"}
"""The Hub's name for what a model is for, by the only modality that it has."""
RESULT_TASKS = {
    "zeroshot": "zero-shot-image-classification",
    "fewshot": "image-classification",
    "multilabel": "image-classification",
    "retrieval": "image-text-retrieval",
}
TASK_NAMES = {"zeroshot": "zero-shot classification", "fewshot": "few-shot classification", "captions": "caption selection"}
METRIC_TYPES = {
    "top1": "accuracy",
    "top5": "top_5_accuracy",
    "mean_per_class": "mean_per_class_accuracy",
    "i2t_r1": "recall_at_1",
    "i2t_r5": "recall_at_5",
    "t2i_r1": "recall_at_1",
    "t2i_r5": "recall_at_5",
}
"""The Hub's names of metrics; others keep their own."""


def metadata(page: Page, config: Config, modality: str | None, scores: Scores | None) -> str:
    """The head as YAML. scores: of this very model, None for one of which something was left out."""
    experts = bool(config.model.expert_layers)
    values: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": TASKS[modality],
        "license": page.license,
        "language": list(page.languages),
        "datasets": list(page.datasets),
        "tags": ["clip", "contrastive-learning", "image-text", *(["mixture-of-experts", "limoe"] if experts else [])],
    }
    if scores is not None and row_names(scores.metrics):
        values["model-index"] = [{"name": config.run.name, "results": _results(config, scores)}]
    return yaml.safe_dump({name: value for name, value in values.items() if value}, sort_keys=False, allow_unicode=True)


def _results(config: Config, scores: Scores) -> list[dict[str, Any]]:
    """A result for each set that was evaluated, with all of its metrics."""
    results: dict[str, dict[str, Any]] = {}
    for metric, name in row_names(scores.metrics).items():
        group, _, short = metric.rpartition("/")
        kind, _, where = group.removeprefix("eval/").partition("_")
        dataset = where or _default_set(kind, config)
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
        task = {"type": RESULT_TASKS.get(kind, TASKS[None]), "name": TASK_NAMES.get(kind, kind)}
        result = results.setdefault(group, {"task": task, "dataset": {"type": slug, "name": dataset}, "metrics": []})
        value = round(scores.metrics[metric], 4)
        result["metrics"].append(
            {"type": METRIC_TYPES.get(short, short), "name": name.removesuffix(f", {where}"), "value": value}
        )
    return list(results.values())


def _default_set(kind: str, config: Config) -> str:
    """What to call the set that the configuration gives no name."""
    if config.data.kind != "webdataset":
        return config.data.kind
    folder = classification_sets(config.eval.zeroshot).get("default") if kind == "zeroshot" else None
    return Path(folder).name if folder else "evaluation set of the run"
