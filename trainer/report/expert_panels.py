"""What the pictures of an atlas show: which rows, and what each loses without each expert."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation.atlas import Costs, TaskAtlas

MOST_ROWS = 12
"""Classes, attributes or words in a picture: those that change most. All are among the numbers."""
LEAST_CHANGE = 0.005
"""What rounds to no point at all."""
KNOCKED = {"image": "image tokens", "text": "text tokens", "both": "both"}


@dataclass(frozen=True)
class Panel:
    """A block of a heat map. rows: their names; values: costs by row and expert, from -1 to 1."""

    title: str
    rows: list[str]
    values: list[list[float]]


def label(atlas: TaskAtlas) -> str:
    """A task in a title: `zero-shot unseen`."""
    return atlas.task.name.replace("zeroshot", "zero-shot").replace("_", " ")


def layer_panels(index: int, atlases: Sequence[TaskAtlas]) -> list[Panel]:
    """One layer: each task as a whole, by the tokens that the expert is knocked out for, then its groups that change most.

    Groups are those of the first classification set and of retrieval, with the expert knocked out for all tokens.
    """
    panels = []
    for atlas in atlases:
        overall = atlas.layers[index].overall
        title = f"{label(atlas)}, {atlas.baseline:.0%} with all experts: knocked out for"
        panels.append(Panel(title, [KNOCKED[knocked] for knocked in overall], [costs.tolist() for costs in overall.values()]))
    first = next((atlas for atlas in atlases if atlas.task.name.startswith("zeroshot")), None)
    for atlas in atlases:
        if atlas is first or atlas.task.name == "retrieval":
            panels += [_grouped(kind, atlas, atlas.layers[index]) for kind in atlas.task.groupings]
    return [panel for panel in panels if panel.rows]


def step_panels(index: int, models: Sequence[tuple[str, Sequence[TaskAtlas]]]) -> list[Panel]:
    """One layer of several models: for each task a row a model, with the expert knocked out for all tokens.

    models: what to call each, and its atlases, which are of the same tasks.
    """
    panels = []
    for task in range(len(models[0][1])):
        of_task = [(name, atlases[task]) for name, atlases in models]
        rows = [f"{name} {atlas.baseline:.0%}" for name, atlas in of_task]
        values = [atlas.layers[index].overall["both"].tolist() for _, atlas in of_task]
        panels.append(Panel(label(of_task[0][1]), rows, values))
    return panels


def _grouped(kind: str, atlas: TaskAtlas, costs: Costs) -> Panel:
    names, baseline = atlas.task.groupings[kind].names, atlas.groups[kind].tolist()
    by_group = costs.groups[kind]["both"].T.tolist()
    shown = most_changed(by_group)
    title = f"{label(atlas)}, by {kind}" + (
        f": the {len(shown)} of {len(names)} that change most" if len(shown) < len(names) else ""
    )
    return Panel(title, [f"{_short(names[row])} {baseline[row]:.0%}" for row in shown], [by_group[row] for row in shown])


def most_changed(rows: Sequence[Sequence[float]]) -> list[int]:
    """The indices of the rows of costs that change most, in their order; without those that hardly change."""
    changed = {row: change for row, costs in enumerate(rows) if (change := max(map(abs, costs))) >= LEAST_CHANGE}
    return sorted(sorted(changed, key=lambda row: -changed[row])[:MOST_ROWS])


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
