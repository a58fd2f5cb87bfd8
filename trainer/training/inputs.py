"""From the configuration to data that can be read: shards, tokenizer, loader, evaluation sets."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.checkpoint.files import TOKENIZER
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.config.sources import WHAT
from trainer.data.loader import TrainingLoader, training_loader
from trainer.data.look import judge_image, judge_labelled
from trainer.data.order.mixture import ALONE, Mixture, Phase
from trainer.data.shapes.write import RECIPES, write_shapes
from trainer.data.shards.captions import training_captions
from trainer.data.shards.opening import Remote
from trainer.data.shards.patterns import list_shards
from trainer.data.shares import Budget, asked_of, changes, other_epochs, work_out
from trainer.data.sources import (
    FoundSource,
    Shards,
    all_shards,
    check_evaluation_data,
    check_training_data,
    load_tokenizer,
    with_shapes,
)
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
    sources: list[FoundSource]
    tokenizer: Tokenizer
    told: list[str]  # a line for each source of training data and one for each evaluation set

    @property
    def shards(self) -> list[str]:
        """The shards of all sources."""
        return all_shards(self.sources)

    def loader(self, processes: Processes, progress: TrainingProgress) -> TrainingLoader:
        """Endless batches of this rank, from where the run is. A collective.

        The canonical streams of the run so far are kept unless data.streams is set, and so are the shares of the sources, unless
        these are asked for otherwise than before: then the new shares hold from here on.
        """
        config = self.config
        mixture = first_reads(lambda: mixture_of(config, self.sources, progress), processes)
        return training_loader(
            replace(config.data, streams=config.data.streams or progress.streams),
            shards=mixture,
            tokenizer=self.tokenizer,
            image_size=config.model.image_size,
            text_length=config.model.text_length,
            batch_size=config.train.batch_size // config.train.accumulate,
            rank=processes.rank,
            world=processes.world,
            seed=config.seed,
            start=progress.pairs,
            progress=progress.data,
        )


def find_pairs(config: Config, run_dir: Path, processes: Processes) -> TrainingPairs:
    """Find and check all data of the run, and make its tokenizer unless the run directory has one. A collective."""
    sources, evaluation = first_reads(lambda: _check_all(config), processes)
    first_reads(lambda: _make_tokenizer(config, sources, run_dir / TOKENIZER), processes)
    told = [f"{found.what}: {found.told()}" for found in (*(source.shards for source in sources), *evaluation)]
    return TrainingPairs(config, sources, load_tokenizer(config, run_dir / TOKENIZER), told)


def mixture_of(config: Config, sources: list[FoundSource], progress: TrainingProgress, tell: bool = True) -> Mixture:
    """The sources in the shares that hold from here on, and those that held before.

    Raises UserError when they are impossible. tell: warn when they change during a run, or are not what the epochs say.
    """
    options, found = [each.options for each in sources], [each.source for each in sources]
    budget = Budget(config.train.steps, config.train.batch_size, progress.pairs)
    phases = [Phase(**phase) for phase in progress.mixture] or ([ALONE] if progress.pairs else [])
    asked = asked_of(options, budget)
    if phases and phases[-1].asked == asked:
        return Mixture(found, phases)
    before = Mixture(found, phases)
    drawn = before.drawn_by_all(progress.streams or 1, progress.pairs) if phases else {}
    sizes = {each.options.name: each.pairs for each in sources if each.options.epochs}
    phase = Phase(progress.pairs, work_out(options, sizes, drawn, budget), asked)
    if tell and (note := other_epochs(options, sizes, budget)):
        _log.warning("%s: %s", WHAT, note)
    if tell and phases and (changed := changes(phases[-1], phase)):
        _log.warning("%s: from pair %d on, %s; each source continues where it stopped", WHAT, progress.pairs, changed)
    return Mixture(found, [*(earlier for earlier in phases if earlier.pairs < phase.pairs), phase])


def source_rows(config: Config, sources: list[FoundSource], progress: TrainingProgress) -> list[tuple[str, str]]:
    """A row of a table for each source: its share and why, how many pairs it has, and the passes over it in the run."""
    mixture = mixture_of(config, sources, progress)
    phase = mixture.phases[-1]
    drawn = mixture.drawn_by_all(progress.streams or 1, progress.pairs) if progress.pairs else {}
    left = max(0, config.train.steps * config.train.batch_size - progress.pairs)
    rows = []
    for source in sources:
        options, name = source.options, source.options.name
        passes = (drawn.get(name, 0) + left * phase.share(name)) / source.pairs if source.pairs else None
        if not name:
            rows += [("  epochs", f"{passes:.3g} in the run, of about {source.pairs:,} pairs")] if passes is not None else []
            continue
        asked = f"weight {options.weight:g}" if options.epochs is None else f"{options.epochs:g} epochs"
        held = f"about {source.pairs:,} pairs, {passes:.3g} epochs in the run" if passes is not None else "pairs not known"
        rows.append((f"  share of {name}", f"{phase.share(name):.1%} ({asked}): {len(source.source.shards)} shards, {held}"))
    return rows


def _check_all(config: Config) -> tuple[list[FoundSource], list[Shards]]:
    """The sources of training data, and the shards of each evaluation set: a mistake in them should show now, not after hours."""
    training = check_training_data(config)
    evaluation = [check() for check in evaluation_checks(config, all_shards(training))]
    if config.eval.retrieval is True and retrieval_shards(config) is None:
        _log.warning("data.val is not set, so retrieval is not evaluated (eval.retrieval=false silences this)")
    return training, evaluation


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


def _make_tokenizer(config: Config, sources: list[FoundSource], path: Path) -> None:
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
        train_tokenizer(_captions(config, sources), path, config.model.vocabulary, config.seed)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({reason(problem)}): make room or choose another run.dir") from problem


def _captions(config: Config, sources: list[FoundSource]) -> Iterator[str]:
    """Captions to train a tokenizer on, from each source as many as its share."""
    phase = mixture_of(config, sources, TrainingProgress(), tell=False).phases[-1]
    for source in sources:
        count = round(phase.share(source.options.name) * config.data.tokenizer_captions)
        yield from training_captions(source.source.shards, source.source.rule, count, Remote.of(config.data))
