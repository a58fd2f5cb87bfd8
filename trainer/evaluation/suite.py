"""The evaluations that the configuration asks for, and their table."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainer.config.schema import Config
from trainer.data.evaluation import Crop
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.evaluation.benchmark import (
    CLASSIFICATION,
    MULTILABEL,
    RETRIEVAL,
    SELECTION,
    WINOGROUND,
    BenchmarkSet,
    benchmark_sets,
)
from trainer.evaluation.encoder import Encoder, Tokenize
from trainer.evaluation.fewshot import fewshot
from trainer.evaluation.fewshot_set import fewshot_sets, key_of
from trainer.evaluation.multilabel import multilabel
from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.selection import selection
from trainer.evaluation.setting import Setting
from trainer.evaluation.shots import Candidates
from trainer.evaluation.winoground import winoground
from trainer.evaluation.wording import Wording, Wordings
from trainer.evaluation.zeroshot import Confusion, zeroshot
from trainer.reporting.example_tables import ExampleTable

PER_CLASS = "mean_per_class"
ZEROSHOT_ROWS = {"top1": "top-1", "top5": "top-5", PER_CLASS: "mean per class"}
RETRIEVAL_ROWS = {
    "i2t_r1": "image to text R@1",
    "i2t_r5": "image to text R@5",
    "t2i_r1": "text to image R@1",
    "t2i_r5": "text to image R@5",
}
EVALUATORS: dict[str, Callable[..., dict[str, float]]] = {RETRIEVAL: retrieval, SELECTION: selection, WINOGROUND: winoground}
"""What judges a set of `eval.suite` without classes, by its kind."""
FEWSHOT_ROWS = (10, 5, 1)
"""Numbers of shots, of which the table shows the first that was evaluated."""

Judge = Callable[[Setting], dict[str, float]]
"""An evaluation: from the model and how to read to metrics. A collective."""


@dataclass
class Memory:
    """What stays from one evaluation of a run to the next.

    candidates: of the few-shot probes, by the key of their set; confusions: of the last zero-shot classifications, by the group
    of their metrics, None: they are not counted.
    """

    candidates: dict[str, Candidates] = field(default_factory=dict)
    confusions: dict[str, list[Confusion]] | None = None


def evaluate(
    config: Config,
    encoder: Encoder,
    tokenizer: Tokenize,
    processes: Processes,
    memory: Memory | None = None,
    crop: Crop | None = None,
    tables: dict[str, ExampleTable] | None = None,
) -> dict[str, float]:
    """Run what `config.eval` asks for on all ranks together: metric names to values, the same on every rank. A collective.

    `eval/zeroshot/top1` for the classification set `default`, `eval/zeroshot_<name>/top1` for another; `eval/fewshot/10shot`
    likewise; `eval/retrieval/i2t_r1`, and `eval/retrieval_<name>/i2t_r1` for a set of the suite. The value for random guessing is
    `<metric>_chance`. memory: what an earlier evaluation found, and is to be found by this one; crop: what makes the encoder's
    images square, None: what our models need; tables: gets examples of each set that has some, by the name of its group
    (`zeroshot`), as many as log.prediction_rows says. Raises UserError for a setting or data that cannot be used.
    """
    if config.eval.batch_size < 1 or config.eval.batch_size % processes.world:
        raise UserError(
            f"eval.batch_size={config.eval.batch_size} cannot be shared evenly by {processes.world} processes: "
            f"choose a multiple of {processes.world}"
        )
    setting = Setting.of(config, encoder, tokenizer, processes, crop, with_examples=tables is not None)
    metrics: dict[str, float] = {}
    for group, judge in _evaluations(config, processes, memory or Memory()).items():
        found = judge(setting)
        metrics |= {f"{group}/{'top1_chance' if metric == 'chance' else metric}": value for metric, value in found.items()}
        if tables is not None:
            tables |= {group.removeprefix("eval/"): table for table in setting.tables}
            setting.tables.clear()
    return metrics


def _evaluations(config: Config, processes: Processes, memory: Memory) -> dict[str, Judge]:
    """What is to be evaluated, in this order, by the group of its metrics. A collective."""
    asked: dict[str, Judge] = {}
    suite = first_reads(lambda: benchmark_sets(config.eval.suite), processes)
    wordings = wordings_of(config, suite)
    for name, folder in classification_sets(config.eval.zeroshot).items():
        group = _group("zeroshot", name)
        asked[group] = partial(zeroshot, folder, wording=wordings.of(name), confusions=_list_of(memory.confusions, group))
    for name, place in fewshot_sets(config.eval.fewshot).items():
        asked[_group("fewshot", name)] = partial(fewshot, place, what=key_of(name), kept=memory.candidates)
    shards = retrieval_shards(config)
    if shards is not None:
        asked["eval/retrieval"] = partial(retrieval, shards, what=retrieval_key(config))
    for found in suite:
        if found.group in asked:
            raise UserError(f"eval.suite: {found.folder} would be {found.group}, like another set: name it, {{name: folder}}")
        asked[found.group] = _judge_of(found, wordings.of(found.name), _list_of(memory.confusions, found.group))
    return asked


def _judge_of(found: BenchmarkSet, wording: Wording, confusions: list[Confusion] | None) -> Judge:
    if found.kind == CLASSIFICATION:
        return partial(zeroshot, found.folder, what=found.what, wording=wording, confusions=confusions)
    if found.kind == MULTILABEL:
        return partial(multilabel, found.folder, what=found.what, wording=wording)
    return partial(EVALUATORS[found.kind], found.folder, what=found.what)


def _list_of(confusions: dict[str, list[Confusion]] | None, group: str) -> list[Confusion] | None:
    """A new list for a group, if they are asked for."""
    if confusions is None:
        return None
    confusions[group] = []
    return confusions[group]


def wordings_of(config: Config, suite: Iterable[BenchmarkSet]) -> Wordings:
    """The prompts and class names that the configuration asks for, of its classification sets and those of its suite."""
    classified = [found.name for found in suite if found.kind in (CLASSIFICATION, MULTILABEL)]
    return Wordings(config.eval, [*classification_sets(config.eval.zeroshot), *classified])


def _group(kind: str, name: str) -> str:
    return f"eval/{kind}" if name == "default" else f"eval/{kind}_{name}"


def classification_sets(zeroshot: Any) -> dict[str, str]:
    """`eval.zeroshot` (null, a path, or names to paths) as name to path; a name whose path is null is switched off."""
    named = zeroshot if isinstance(zeroshot, Mapping) else {"default": zeroshot}
    for name, path in named.items():
        if path is not None and not isinstance(path, str):
            raise UserError(f"eval.zeroshot: '{name}' is {path!r}; give a folder, {{name: folder}}, or null")
    return {str(name): path for name, path in named.items() if path is not None}


def retrieval_shards(config: Config) -> Any:
    """The shards that `eval.retrieval` means, or None: true is `data.val`, false and null are none, anything else is itself."""
    wanted = config.eval.retrieval
    if isinstance(wanted, bool) or wanted is None:
        return config.data.val if wanted else None
    return wanted


def retrieval_key(config: Config) -> str:
    """The configuration key that names the shards of `retrieval_shards`."""
    return "data.val" if config.eval.retrieval is True else "eval.retrieval"


def is_constant(metric: str) -> bool:
    """Whether a metric of `evaluate` only describes the data: a value for random guessing, or a count."""
    return metric.startswith("eval/") and metric.endswith(("_chance", "/images", "/captions"))


def summary_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """The rows (what, value, chance) of the final table, such as ("zero-shot top-1", "83.2%", "2.1%"); in the metrics' order."""
    rows = []
    for metric, what in row_names(metrics).items():
        guessing = chance_of(metric, metrics)
        if guessing is not None:
            rows.append((what, f"{metrics[metric]:.1%}", f"{guessing:.1%}"))
    return rows


def row_names(metrics: Mapping[str, float]) -> dict[str, str]:
    """The metrics that a table shows, in their order, and what it calls them."""
    named = {metric: _row_name(metric, metrics) for metric in metrics}
    return {metric: what for metric, what in named.items() if what is not None and not is_constant(metric)}


def chance_of(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The value for random guessing, None where it is not known."""
    group, _, name = metric.rpartition("/")
    # The mean over the classes is guessed like that over the images.
    return metrics.get(f"{group}/{'top1' if name == PER_CLASS else name}_chance")


def confusion_rows(confusions: Mapping[str, list[Confusion]]) -> list[tuple[str, str, str]]:
    """Rows for the same table: under the name of each set, what share of a class's images was taken for another class."""
    rows = []
    for group, worst in confusions.items():
        where = group.partition("/")[2].partition("_")[2]
        if worst:
            rows.append((f"most often mistaken{', ' * bool(where)}{where}", "", ""))
        rows += [(f"{pair.true} for {pair.predicted}", f"{pair.share:.1%}", "") for pair in worst]
    return rows


def _row_name(metric: str, metrics: Collection[str]) -> str | None:
    """`eval/zeroshot_unseen/top1` is "zero-shot top-1, unseen"; None for what the table leaves out."""
    group, _, name = metric.removeprefix("eval/").partition("/")
    kind, _, where = group.partition("_")
    row: str | None = None
    if kind == "zeroshot":
        row = f"zero-shot {ZEROSHOT_ROWS.get(name, name)}"
    elif kind == "fewshot":
        # 10 shots if every class has them, else as many as there are.
        usual = next((f"{shots}shot" for shots in FEWSHOT_ROWS if f"eval/{group}/{shots}shot" in metrics), None)
        row = name.replace("shot", "-shot probe") if name == usual else None
    elif kind == "retrieval":
        row = RETRIEVAL_ROWS.get(name)
    elif kind == "multilabel":
        row = "multi-label mAP" if name == "mean_average_precision" else None
    elif kind == "captions":
        row = "caption selection" if name == "top1" else None
    elif kind == "winoground":
        row = f"Winoground {name.replace('_', ' ')}"
    return f"{row}, {where}" if row and where else row
