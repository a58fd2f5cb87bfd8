"""Size and recall against the number of experts kept, as a table."""

from trainer.evaluation.suite import RETRIEVAL_ROWS
from trainer.export.request import Export
from trainer.export.trained import Trained, Trimmed
from trainer.export.weights import describe
from trainer.report.tables import markdown


def print_curve(export: Export) -> list[str]:
    """The lines of a table in Markdown: the whole model, the experts that are used, and each number of the most used ones.

    Raises UserError as write_export, which it is not: nothing is written.
    """
    assert export.experts is not None
    trained = Trained.open(export)
    layers = list(trained.counts)
    metrics = {metric: what for metric, what in RETRIEVAL_ROWS.items() if metric in trained.whole.recall}
    by_layer = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"

    def row(name: str, left: Trimmed) -> list[str]:
        counts = trained.counts.items()
        kept = [str(len(left.kept.experts.get(layer, count_e))) for layer, count_e in counts]
        lost = [f"{left.lost.get(layer, 0) / int(count_e.sum()):.1%}" for layer, count_e in counts]
        recall = [f"{left.recall[metric]:.1%}" if metric in left.recall else "" for metric in metrics]
        return [name, ", ".join(kept), ", ".join(lost), f"{left.parameters:,}", f"{left.bytes:,}", *recall]

    rows = [row("whole model", trained.whole), row("used", trained.trimmed())]
    rows += [row(f"top:{number}", trained.trimmed(number)) for number in export.experts.top]
    header = ["experts", f"kept in {by_layer}", "choices lost there", "parameters", "bytes", *metrics.values()]
    told = [f"{describe(export, trained.config)}, {export.dtype}; {export.experts.typed}", ""]
    told += markdown(header, rows, numbers=len(header) - 1).splitlines()
    return told if metrics else [*told, "", f"Recall was not measured: {trained.unmeasured}."]
