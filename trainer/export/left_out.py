"""The part of a card about what was left out of a model, and what that costs."""

from trainer.evaluation.suite import RETRIEVAL_ROWS
from trainer.export.trained import Trained, Trimmed
from trainer.report.tables import markdown


def left_out(trained: Trained, left: Trimmed) -> list[str]:
    """Paragraphs of Markdown."""
    export, whole = trained.export, trained.whole
    typed = [f"modality={export.modality}"] if export.modality else []
    typed += [export.experts.typed] if export.experts else []
    rows = [
        ["parameters", f"{whole.parameters:,}", f"{left.parameters:,}"],
        [f"bytes of the weights, {export.dtype}", f"{whole.bytes:,}", f"{left.bytes:,}"],
        *([what, f"{whole.recall[metric]:.1%}", f"{left.recall[metric]:.1%}"] for metric, what in _measured(left)),
    ]
    return [
        "## What was left out",
        f"Exported with `{' '.join(typed)}`.",
        markdown(["", "whole model", "this export"], rows, numbers=2).rstrip("\n"),
        *([_modality(export.modality)] if export.modality else []),
        *(_experts(trained, left) if export.experts else []),
    ]


def _measured(left: Trimmed) -> list[tuple[str, str]]:
    return [(metric, what) for metric, what in RETRIEVAL_ROWS.items() if metric in left.recall]


def _modality(modality: str) -> str:
    other = "image" if modality == "text" else "text"
    return f"It embeds {modality}s only: what {other}s alone need is left out. That changes no embedding of a {modality}."


def _experts(trained: Trained, left: Trimmed) -> list[str]:
    """Which experts are left, and what the others did."""
    experts = trained.export.experts
    assert experts is not None
    rows = []
    for layer, count_e in trained.counts.items():
        kept = left.kept.experts.get(layer, range(len(count_e)))
        lost = f"{left.lost.get(layer, 0):,} of {int(count_e.sum()):,}"
        rows.append([str(layer), ", ".join(map(str, kept)), f"{len(kept)} of {len(count_e)}", lost])
    table = markdown(["layer", "experts kept", "number", "choices lost"], rows, numbers=2)
    return ["### Experts", table.rstrip("\n"), _cost(left, experts.examples), _recall(trained, left)]


def _cost(left: Trimmed, examples: str) -> str:
    if not any(left.lost.values()):
        return (
            f"No token of `{examples}` chose an expert that was left out: wherever that holds, embeddings are those of the whole "
            f"model to the last bit. A token elsewhere that would choose one goes to the best of the experts kept."
        )
    return (
        f"Choices lost: tokens of `{examples}` that chose an expert that was left out, as the whole model routes them. They go "
        f"to the best of the experts kept, with the gate that the whole router gives it, so that their embeddings differ from "
        f"the whole model's. Texts and images all of whose tokens keep their experts are embedded as before."
    )


def _recall(trained: Trained, left: Trimmed) -> str:
    if not left.recall:
        return f"Recall was not measured: {trained.unmeasured}."
    modality = trained.export.modality
    other = {"text": " The images are embedded by the whole model.", "image": " The texts are embedded by the whole model."}
    return "R@k: recall on the run's own retrieval set; no token is dropped." + (other[modality] if modality else "")
