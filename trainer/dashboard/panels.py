"""Which curves stand where in a project's workspace, in the order in which a person reads them.

A panel's pattern names whole metrics, so that new layers, modalities and evaluation sets join the panels they belong to.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.evaluation.suite import is_constant

LAYER = r"routing/layer\d+"
MODALITY = "(image|text)"


@dataclass(frozen=True)
class Panel:
    """Curves over the steps in one picture: those of all metrics that match the pattern."""

    title: str
    metrics: str
    """A regular expression for a metric's whole name, in what W&B's server (RE2) and Python have in common: no lookaround."""

    def shows(self, metric: str) -> bool:
        """Whether a metric is among its curves."""
        return re.fullmatch(self.metrics, metric) is not None


@dataclass(frozen=True)
class Section:
    """Panels under one heading. is_open: whether they are shown before somebody clicks it."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = True


SECTIONS = (
    Section(
        "Loss and success",
        (
            Panel("Contrastive loss", "train/loss_contrastive"),
            Panel("Contrastive loss, by source", r"train/loss_contrastive/[\w-]+"),
            Panel("Routing success, by modality", f"routing/success/{MODALITY}"),
            Panel("Zero-shot top-1", r"eval/zeroshot[^/]*/top1"),
            Panel("Loss with the auxiliary losses", "train/loss"),
            Panel("Auxiliary loss", "train/loss_aux"),
            Panel("Auxiliary losses, unweighted", "train/aux/.+"),
        ),
    ),
    Section(
        "Routing by modality",
        (
            Panel("Text: success by layer", f"{LAYER}/success/text"),
            Panel("Image: success by layer", f"{LAYER}/success/image"),
            Panel("Text: experts used by layer", f"{LAYER}/experts_used/text"),
            Panel("Image: experts used by layer", f"{LAYER}/experts_used/image"),
            Panel("Text: entropy by layer", f"{LAYER}/entropy/text"),
            Panel("Image: entropy by layer", f"{LAYER}/entropy/image"),
            Panel("Texts' share of the tokens", "routing/text_share"),
            Panel("Dead experts of all layers", "routing/dead_experts"),
        ),
    ),
    Section(
        "Routing by layer",
        (
            Panel("Load of the busiest expert", f"{LAYER}/load/max"),
            Panel("Text: load of its busiest expert", f"{LAYER}/load/text"),
            Panel("Image: load of its busiest expert", f"{LAYER}/load/image"),
            Panel("Balance: deviation of the load over its mean", f"{LAYER}/load/cv"),
            Panel("Dead experts", f"{LAYER}/dead_experts"),
            Panel("Spread of the biases", f"{LAYER}/bias/.+"),
        ),
    ),
    Section(
        "Routing by expert (log.experts=true)",
        (
            Panel("Text: load of each expert", rf"{LAYER}/expert\d+/load/text"),
            Panel("Image: load of each expert", rf"{LAYER}/expert\d+/load/image"),
        ),
        is_open=False,
    ),
    Section(
        "Evaluation",
        (
            Panel("Zero-shot top-1 and top-5", r"eval/zeroshot[^/]*/top[15]"),
            Panel("Zero-shot, mean per class", r"eval/zeroshot[^/]*/mean_per_class"),
            Panel("Image to text", r"eval/retrieval[^/]*/i2t_r\d+"),
            Panel("Text to image", r"eval/retrieval[^/]*/t2i_r\d+"),
            Panel("Few-shot probes", r"eval/fewshot[^/]*/\d+shot"),
            Panel("Few-shot probes, spread and by class", r"eval/fewshot[^/]*/\d+shot_(std|mean_per_class)"),
            Panel("Modality gap", "eval/retrieval[^/]*/modality_gap"),
            Panel("Cosine of pairs", "eval/retrieval[^/]*/pair_cosine"),
            Panel("Zero-shot, everything", r"eval/zeroshot[^/]*/[a-z0-9_]+"),
            Panel("Several classes an image: mean average precision", "eval/multilabel[^/]*/mean_average_precision"),
            Panel("Caption selection", "eval/captions[^/]*/top1"),
            Panel("Winoground", "eval/winoground[^/]*/(text|image|group)_score"),
            Panel("Left out", r"eval/.+/bad_(samples|shards)"),
        ),
    ),
    Section(
        "Optimizer and data",
        (
            Panel("Learning rate", "train/lr"),
            Panel("Gradient norm", "train/grad_norm"),
            Panel("Logit scale", "train/logit_scale"),
            Panel("Logit bias (model.loss=sigmoid)", "train/logit_bias"),
            Panel("Skipped steps", "train/skipped_steps"),
            Panel("Data left out or cut", "data/[^/]+"),
            Panel("Pairs so far, by source", r"data/source/[\w-]+/pairs"),
        ),
    ),
    Section(
        "Performance",
        (
            Panel("Pairs per second", "perf/pairs_per_second"),
            Panel("Seconds: step, and waiting for data in it", "perf/(step|data)_seconds"),
            Panel("Fastest and slowest rank: seconds of waiting for data", "perf/ranks/data_seconds/(min|max)"),
            Panel("Fastest and slowest rank: seconds of its own computing", "perf/ranks/compute_seconds/(min|max)"),
            Panel("Which rank is the slowest", "perf/ranks/.+/worst_rank"),
            Panel("Share of the GPUs' peak", "perf/mfu"),
            Panel("Peak memory, GiB", "perf/memory_gib"),
            Panel("Checkpoints", "perf/checkpoint_.+"),
        ),
    ),
)

# W&B adds `/l:HOST` when several nodes write to a run.
NODE = "(/l:.+)?"
SYSTEM = Section(
    "System",
    (
        Panel("GPU utilisation, %", rf"system/gpu\.\d+\.gpu{NODE}"),
        Panel("GPU memory, %", rf"system/gpu\.\d+\.memoryAllocated{NODE}"),
        Panel("GPU power, W", rf"system/gpu\.\d+\.powerWatts{NODE}"),
        Panel("GPU temperature, °C", rf"system/gpu\.\d+\.temp{NODE}"),
        Panel("CPU of the process, %", rf"system/(proc\.)?cpu{NODE}"),
        Panel("Memory, %", rf"system/memory_percent{NODE}"),
        Panel("Network, bytes", rf"system/network\.(sent|recv){NODE}"),
        Panel("Disks, MB", rf"system/disk\.\w+\.(in|out){NODE}"),
    ),
    is_open=False,
)
"""What W&B measures itself, over time."""


def unseen(metrics: Iterable[str]) -> list[str]:
    """The metrics of a run that W&B gets and no panel shows."""
    panels = [panel for section in SECTIONS for panel in section.panels]
    return [name for name in metrics if not is_constant(name) and not any(panel.shows(name) for panel in panels)]
