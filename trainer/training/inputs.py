"""From the configuration to data that can be read: shards, tokenizer, loader, evaluation sets."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.checkpoint.files import TOKENIZER
from trainer.config.schema import Config
from trainer.data.loader import TrainingLoader, training_loader
from trainer.data.look import judge_image, judge_labelled
from trainer.data.order.progress import DataProgress
from trainer.data.shapes.write import RECIPES, write_shapes
from trainer.data.shards.captions import CaptionRule, training_captions
from trainer.data.shards.opening import Remote
from trainer.data.shards.patterns import list_shards
from trainer.data.sources import Shards, check_evaluation_data, check_training_data, load_tokenizer, with_shapes
from trainer.data.tokenizer import Tokenizer, given_tokenizer, train_tokenizer
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes
from trainer.errors import UserError, reason
from trainer.evaluation.benchmark import CLASSIFICATION, MULTILABEL, BenchmarkSet, benchmark_sets
from trainer.evaluation.classification_set import read_classification_set
from trainer.evaluation.fewshot_set import fewshot_sets, key_of, read_fewshot_set
from trainer.evaluation.suite import classification_sets, retrieval_key, retrieval_shards, wordings_of
from trainer.files import write_whole

_log = logging.getLogger(__name__)


def locate_data(config: Config, processes: Processes) -> Config:
    """A copy of the configuration in which `data.train`, `data.val` and the evaluation sets name what is on disk. A collective.

    An embedded data set is written on first use, once per host.
    """
    if config.data.kind not in RECIPES:
        return config
    if processes.local_rank == 0:
        write_shapes(config.data, config.model.image_size)
    processes.barrier()
    # It exists already; this only returns its path.
    return with_shapes(config, write_shapes(config.data, config.model.image_size))


@dataclass(frozen=True)
class TrainingPairs:
    """The training data of a run, found and checked, not yet read."""

    config: Config
    shards: list[str]
    tokenizer: Tokenizer
    told: list[str]  # a line for the training data and one for each evaluation set

    def loader(
        self, processes: Processes, start: int, streams: int | None, progress: DataProgress | None = None
    ) -> TrainingLoader:
        """Endless batches of this rank, as if `start` pairs had been drawn already.

        `streams`: canonical streams of the run so far, kept unless data.streams is set;
        `progress`: what all ranks knew about the data at that point.
        """
        config = self.config
        return training_loader(
            replace(config.data, streams=config.data.streams or streams),
            shards=self.shards,
            tokenizer=self.tokenizer,
            image_size=config.model.image_size,
            text_length=config.model.text_length,
            batch_size=config.train.batch_size // config.train.accumulate,
            rank=processes.rank,
            world=processes.world,
            seed=config.seed,
            start=start,
            progress=progress,
        )


def find_pairs(config: Config, run_dir: Path, processes: Processes) -> TrainingPairs:
    """Find and check all data of the run, and make its tokenizer unless the run directory has one. A collective."""
    training, *evaluation = first_reads(lambda: _check_all(config), processes)
    shards = training.names
    first_reads(lambda: _make_tokenizer(config, shards, run_dir / TOKENIZER), processes)
    told = [f"{found.what}: {found.told()}" for found in (training, *evaluation)]
    return TrainingPairs(config, shards, load_tokenizer(config, run_dir / TOKENIZER), told)


def _check_all(config: Config) -> list[Shards]:
    """The training shards, then those of each evaluation set: a mistake in them should show now, not after hours."""
    training = check_training_data(config)
    evaluation = [check() for check in evaluation_checks(config, training.names)]
    if config.eval.retrieval is True and retrieval_shards(config) is None:
        _log.warning("data.val is not set, so retrieval is not evaluated (eval.retrieval=false silences this)")
    return [training, *evaluation]


def evaluation_checks(config: Config, training: list[str]) -> list[Callable[[], Shards]]:
    """A check of each evaluation set that the configuration names, which returns what it found.

    Each raises UserError for unusable data, including `training` shards; this function, for a setting that names none.
    """

    suite = benchmark_sets(config.eval.suite)
    wordings = wordings_of(config, suite)

    def check_classes(name: str, folder: str) -> Shards:
        what = "eval.zeroshot" if name == "default" else f"eval.zeroshot.{name}"
        shards = read_classification_set(folder, what, wordings.of(name)).shards
        return check_evaluation_data(what, shards, training, config.data, judge_labelled)

    def check_examples(name: str, place: Any) -> Shards:
        # They may be training shards: a probe learns from features of whatever the model has seen.
        shards = read_fewshot_set(place, key_of(name)).train
        return check_evaluation_data(f"{key_of(name)} (training part)", shards, [], config.data, judge_labelled)

    def check_probe(name: str, place: Any) -> Shards:
        shards = read_fewshot_set(place, key_of(name)).test
        return check_evaluation_data(f"{key_of(name)} (test part)", shards, training, config.data, judge_labelled)

    def check_retrieval(shards: Any) -> Shards:
        what = retrieval_key(config)
        return check_evaluation_data(what, list_shards(shards, what), training, config.data)

    def check_benchmark(found: BenchmarkSet) -> Shards:
        if found.kind in (CLASSIFICATION, MULTILABEL):
            shards = read_classification_set(found.folder, found.what, wordings.of(found.name)).shards
            judge = judge_labelled if found.kind == CLASSIFICATION else judge_image
            return check_evaluation_data(found.what, shards, training, config.data, judge)
        return check_evaluation_data(found.what, list_shards(found.folder, found.what), training, config.data)

    sets = classification_sets(config.eval.zeroshot)
    checks: list[Callable[[], Shards]] = [partial(check_classes, name, folder) for name, folder in sets.items()]
    for name, place in fewshot_sets(config.eval.fewshot).items():
        checks += [partial(check_examples, name, place), partial(check_probe, name, place)]
    if (shards := retrieval_shards(config)) is not None:
        checks.append(partial(check_retrieval, shards))
    checks += [partial(check_benchmark, found) for found in suite]
    return checks


def _make_tokenizer(config: Config, shards: list[str], path: Path) -> None:
    if path.exists():  # from the checkpoint that the run resumes from
        if config.data.tokenizer and given_tokenizer(config.data.tokenizer).model != path.read_bytes():
            _log.warning(
                "data.tokenizer=%s differs from this run's tokenizer, which stays in use: %s", config.data.tokenizer, path
            )
        return
    try:
        if config.data.tokenizer:
            write_whole(path, given_tokenizer(config.data.tokenizer).model)
            return
        captions: Iterable[str] = training_captions(
            shards, CaptionRule.of(config.data), config.data.tokenizer_captions, Remote.of(config.data)
        )
        train_tokenizer(captions, path, config.model.vocabulary, config.seed)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({reason(problem)}): make room or choose another run.dir") from problem
