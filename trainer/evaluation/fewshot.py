"""Few-shot classification: what a linear probe of the image features learns from 1, 5, 10 and 25 examples of each class."""

import functools
import logging
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import EvaluationBatch
from trainer.data.limits import LeftOut
from trainer.distributed.agree import first_reads, raise_together
from trainer.errors import UserError
from trainer.evaluation.fewshot_set import read_fewshot_set
from trainer.evaluation.probe import Probe, fit_probe
from trainer.evaluation.ranking import hits
from trainer.evaluation.setting import Setting
from trainer.evaluation.shots import SEEDS, SHOTS, Candidates, Draw

logger = logging.getLogger(__name__)


def fewshot(
    place: Any, setting: Setting, what: str = "eval.fewshot", kept: dict[str, Candidates] | None = None
) -> dict[str, float]:
    """Fit probes to a few training images of each class and classify all test images of a labelled set, whose `place` is that of
    the configuration key `what` (trainer.evaluation.fewshot_set). A collective: every rank takes slices and gets the result.

    The features are those before the projection. `<n>shot`: share of right answers, the mean over SEEDS draws of the n examples;
    `<n>shot_std`: its standard deviation over the draws (n - 1); `<n>shot_mean_per_class`: the mean over the classes with test
    images; `<n>shot_chance`; `images`, the number of test images, and `bad_samples` and `bad_shards`, where there are any. Ties
    are judged as in `trainer.evaluation.ranking`. A number of shots that a class does not have is left out with a warning. kept:
    the candidates of earlier calls by `what`, on every rank; a set that is not among them is looked through and added.
    Raises UserError on every rank for shards that cannot be used, samples without `.cls`, and test images of another class.
    """
    dataset = first_reads(lambda: read_fewshot_set(place, what), setting.processes)
    left_out = LeftOut()
    kept = {} if kept is None else kept
    if what not in kept:
        kept[what] = _find_candidates(dataset.train, setting, what)
    examples = _embed_candidates(dataset.train, kept[what], setting, left_out)
    device = setting.processes.device
    numbers = _sufficient_shots(*examples.poorest(), setting, what)
    probes = {(shots, seed): examples.fit(shots, seed).to(device) for shots in numbers for seed in range(SEEDS)}
    images_c, hits_pc = _judge(list(probes.values()), list(examples.features), dataset.test, setting, left_out, what)
    nothing = f"{what}: the test shards contain no usable image with its class index in .cls"
    raise_together(None if images_c.sum() else "; ".join([nothing, *left_out.told()]), setting.processes)
    return _result(list(probes), images_c, hits_pc) | left_out.metrics()


def _sufficient_shots(poorest: int, fewest: int, setting: Setting, what: str) -> list[int]:
    """Those of SHOTS for which every class has enough examples. Raises UserError if there are none."""
    if not fewest:
        raise UserError(f"{what}: class {poorest} has no training image that can be used: repair its samples, or leave it out")
    lacking = [f"{shots}shot" for shots in SHOTS if shots > fewest]
    if lacking and setting.processes.is_first:
        count = f"{fewest} usable training image{'s' * (fewest > 1)}"
        _warn(f"{what}: class {poorest} has {count}, too few for {', '.join(lacking)}, which will be missing")
    return [shots for shots in SHOTS if shots <= fewest]


def _judge(
    probes: list[Probe], labels: list[int], shards: list[str], setting: Setting, left_out: LeftOut, what: str
) -> tuple[Tensor, Tensor]:
    """The test images of each class, float64 `[c]`, and each probe's hits among them, `[p, c]`; labels: the classes' indices."""
    device = setting.processes.device
    classes = {label: number for number, label in enumerate(labels)}
    images_c = torch.zeros(len(classes), dtype=torch.float64, device=device)
    hits_pc = torch.zeros(len(probes), len(classes), dtype=torch.float64, device=device)
    for batch in setting.batches(shards, left_out):
        raise_together(_label_problem(batch, classes, what), setting.processes)
        features_bd = setting.image_features(batch.images)[batch.valid.to(device)]
        labels_b = torch.tensor(
            [classes[label] for label in batch.labels[batch.valid].tolist()], dtype=torch.int64, device=device
        )
        images_c += torch.bincount(labels_b, minlength=len(classes))
        right_bc = labels_b[:, None] == torch.arange(len(classes), device=device)
        for hits_c, probe in zip(hits_pc, probes, strict=True):
            hits_c.index_add_(0, labels_b, hits(probe.scores(features_bd), right_bc, [1])[0])
    return setting.processes.sum(images_c), setting.processes.sum(hits_pc)


@dataclass(frozen=True)
class _Examples:
    """Candidates for the shots: the features of each, float32 `[width]` on the CPU, by class index (ascending) and id."""

    draw: Draw
    features: dict[int, dict[str, Tensor]]

    def poorest(self) -> tuple[int, int]:
        """The class with the fewest candidates, and how many it has."""
        label = min(self.features, key=lambda label: len(self.features[label]))
        return label, len(self.features[label])

    def fit(self, shots: int, seed: int) -> Probe:
        """A probe of so many examples of each class."""
        chosen = [of_class[sample] for of_class in self.features.values() for sample in self.draw.choose(of_class, shots, seed)]
        classes = len(self.features)
        return fit_probe(torch.stack(chosen), torch.arange(classes).repeat_interleave(shots), classes)


def _find_candidates(shards: list[str], setting: Setting, what: str) -> Candidates:
    """The candidates among the training samples, the same on every rank; no image is decoded. A collective."""
    draw, left_out = Draw(shards), LeftOut()
    mine = draw.candidates(setting.labels(shards, left_out))
    unlabelled = (
        f"{what}: training sample {mine[-1][0]} has no .cls with its class index; add one to every sample" if -1 in mine else None
    )
    raise_together(unlabelled, setting.processes)
    ranks = setting.processes.gather_objects(mine)
    found = draw.candidates((sample, label) for of_rank in ranks for label, samples in of_rank.items() for sample in samples)
    nothing = f"{what}: the training shards contain no sample with its class index in .cls"
    raise_together(None if found else "; ".join([nothing, *left_out.told()]), setting.processes)
    return Candidates(found, left_out)


def _embed_candidates(shards: list[str], candidates: Candidates, setting: Setting, left_out: LeftOut) -> _Examples:
    """The candidates' features, the same on every rank. A collective."""
    left_out.add(candidates.left_out)
    features: dict[int, dict[str, Tensor]] = {label: {} for label in candidates.samples}
    for sample, label, features_d in _embed(shards, candidates.samples, setting, left_out):
        features[label][sample] = features_d
    return _Examples(Draw(shards), features)


def _embed(
    shards: list[str], wanted: Mapping[int, list[str]], setting: Setting, left_out: LeftOut
) -> Iterator[tuple[str, int, Tensor]]:
    """Id, class index and features of the wanted samples that can be used and share their id with no other. A collective."""
    ids, labels, features = [], [], []
    for batch in setting.batches(shards, left_out, only=frozenset(chain.from_iterable(wanted.values()))):
        features.append(setting.image_features(batch.images))
        labels.append(torch.where(batch.valid, batch.labels, -1))
        ids += batch.ids
    if not features:
        return
    device = setting.processes.device
    features_nd = setting.processes.gather_rows(torch.cat(features)).cpu()
    labels_n = setting.processes.gather_rows(torch.cat(labels).to(device)).tolist()
    ids_n = [sample for of_rank in setting.processes.gather_objects(ids) for sample in of_rank]
    count = Counter(ids_n)
    for sample, label, features_d in zip(ids_n, labels_n, features_nd, strict=True):
        if label >= 0 and count[sample] == 1:
            yield sample, label, features_d


def _label_problem(batch: EvaluationBatch, classes: Mapping[int, int], what: str) -> str | None:
    """The line that tells the user about the first bad label of a batch of test images, or None."""
    for valid, label, name in zip(batch.valid.tolist(), batch.labels.tolist(), batch.ids, strict=True):
        if valid and label == -1:
            return f"{what}: test sample {name} has no .cls with its class index; add one to every sample"
        if valid and label not in classes:
            return f"{what}: test sample {name} has class {label}, which no training sample has: add some, or leave the class out"
    return None


def _result(probes: list[tuple[int, int]], images_c: Tensor, hits_pc: Tensor) -> dict[str, float]:
    """The metrics from all ranks' counts, of probes that are named by shots and seed."""
    images, seen_c = images_c.sum().item(), images_c > 0
    metrics: dict[str, float] = {}
    for shots in dict.fromkeys(shots for shots, _ in probes):
        hits_sc = torch.stack([hits_c for hits_c, probe in zip(hits_pc, probes, strict=True) if probe[0] == shots])
        accuracies = [found / images for found in hits_sc.sum(dim=1).tolist()]
        metrics[f"{shots}shot"] = statistics.fmean(accuracies)
        metrics[f"{shots}shot_std"] = statistics.stdev(accuracies)
        metrics[f"{shots}shot_mean_per_class"] = (hits_sc[:, seen_c] / images_c[seen_c]).mean().item()
        metrics[f"{shots}shot_chance"] = 1 / len(images_c)
    return metrics | {"images": images}


@functools.cache
def _warn(line: str) -> None:
    """Log the line; once, however often a run evaluates."""
    logger.warning("%s", line)
