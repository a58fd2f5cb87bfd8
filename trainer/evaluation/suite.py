"""The evaluations that the configuration asks for, and their table."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from trainer.config.schema import Config
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.evaluation.benchmark import CLASSIFICATION, MULTILABEL, RETRIEVAL, SELECTION, benchmark_sets
from trainer.evaluation.encoder import Encoder, Tokenize
from trainer.evaluation.fewshot import fewshot
from trainer.evaluation.fewshot_set import fewshot_sets, key_of
from trainer.evaluation.multilabel import multilabel
from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.selection import selection
from trainer.evaluation.setting import Setting
from trainer.evaluation.zeroshot import zeroshot
from trainer.reporting.example_tables import ExampleTable

RETRIEVAL_ROWS = {
    "i2t_r1": "image to text R@1",
    "i2t_r5": "image to text R@5",
    "t2i_r1": "text to image R@1",
    "t2i_r5": "text to image R@5",
}
EVALUATORS: dict[str, Callable[[str, Setting, str], dict[str, float]]] = {
    CLASSIFICATION: zeroshot,
    MULTILABEL: multilabel,
    RETRIEVAL: retrieval,
    SELECTION: selection,
}
"""What judges a set of `eval.suite`, by its kind."""
FEWSHOT_ROWS = (10, 5, 1)
"""Numbers of shots, of which the table shows the first that was evaluated."""


def evaluate(
    config: Config,
    encoder: Encoder,
    tokenizer: Tokenize,
    processes: Processes,
    tables: dict[str, ExampleTable] | None = None,
) -> dict[str, float]:
    """Run what `config.eval` asks for on all ranks together: metric names to values, the same on every rank. A collective.

    `eval/zeroshot/top1` for the classification set `default`, `eval/zeroshot_<name>/top1` for another; `eval/fewshot/10shot`
    likewise; `eval/retrieval/i2t_r1`, and `eval/retrieval_<name>/i2t_r1` for a set of the suite. The value for random guessing is
    `<metric>_chance`. tables: gets examples of each set that has some, by the name of its group (`zeroshot`), as many as
    log.prediction_rows says. Raises UserError for a setting or data that cannot be used.
    """
    if config.eval.batch_size < 1 or config.eval.batch_size % processes.world:
        raise UserError(
            f"eval.batch_size={config.eval.batch_size} cannot be shared evenly by {processes.world} processes: "
            f"choose a multiple of {processes.world}"
        )
    setting = Setting.of(config, encoder, tokenizer, processes, with_examples=tables is not None)
    metrics: dict[str, float] = {}
    for group, judge in _evaluations(config, setting).items():
        found = judge()
        metrics |= {f"{group}/{'top1_chance' if metric == 'chance' else metric}": value for metric, value in found.items()}
        if tables is not None:
            tables |= {group.removeprefix("eval/"): table for table in setting.tables}
            setting.tables.clear()
    return metrics


def _evaluations(config: Config, setting: Setting) -> dict[str, Callable[[], dict[str, float]]]:
    """What is to be evaluated, in this order, by the group of its metrics. A collective, and so is each of them."""
    asked: dict[str, Callable[[], dict[str, float]]] = {}
    for name, folder in classification_sets(config.eval.zeroshot).items():
        asked[_group("zeroshot", name)] = partial(zeroshot, folder, setting)
    for name, place in fewshot_sets(config.eval.fewshot).items():
        asked[_group("fewshot", name)] = partial(fewshot, place, setting, key_of(name))
    shards = retrieval_shards(config)
    if shards is not None:
        asked["eval/retrieval"] = partial(retrieval, shards, setting, retrieval_key(config))
    for found in first_reads(lambda: benchmark_sets(config.eval.suite), setting.processes):
        if found.group in asked:
            raise UserError(f"eval.suite: {found.folder} would be {found.group}, like another set: name it, {{name: folder}}")
        asked[found.group] = partial(EVALUATORS[found.kind], found.folder, setting, found.what)
    return asked


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
    for metric, value in metrics.items():
        what = _row_name(metric, metrics)
        guessing = metrics.get(f"{metric}_chance")
        if what is not None and guessing is not None:
            rows.append((what, f"{value:.1%}", f"{guessing:.1%}"))
    return rows


def _row_name(metric: str, metrics: Collection[str]) -> str | None:
    """`eval/zeroshot_unseen/top1` is "zero-shot top-1, unseen"; None for what the table leaves out."""
    group, _, name = metric.removeprefix("eval/").partition("/")
    kind, _, where = group.partition("_")
    row: str | None = None
    if kind == "zeroshot":
        row = f"zero-shot {({'top1': 'top-1', 'top5': 'top-5'}).get(name, name)}"
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
    return f"{row}, {where}" if row and where else row
