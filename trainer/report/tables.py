"""Results as Markdown: one row per setting, with mean and standard deviation over its runs."""

from collections.abc import Sequence

from trainer.report.groups import Group, short_names, shown

TABLE_METRICS = (
    "routing/success/text",
    "routing/success/image",
    "eval/zeroshot/top1",
    "eval/zeroshot_rare/top1",
    "eval/zeroshot_unseen/top1",
    "eval/zeroshot_relation/top1",
    "eval/fewshot/10shot",
    "eval/retrieval/i2t_r1",
    "eval/retrieval/t2i_r1",
    "train/loss_contrastive",
)
"""What a table shows by default, if any run has it."""


def results_table(groups: Sequence[Group], metrics: Sequence[str], last_steps: int) -> str:
    """The groups against the metrics; `n` is the number of runs of a setting."""
    keys = list(groups[0].setting) if groups else []
    header = [*short_names(keys), "n", *metrics]
    rows = [
        [
            *(shown(value) for value in group.setting.values()),
            str(len(group.runs)),
            *(str(statistic) if (statistic := group.statistic(metric, last_steps)) else "" for metric in metrics),
        ]
        for group in groups
    ]
    return markdown(header, rows, numbers=len(metrics) + 1)


def runs_table(groups: Sequence[Group]) -> str:
    """Every run with its seed and steps, so that it can be found and repeated."""
    rows = [[run.name, group.label(), shown(run.settings.get("seed")), str(run.step)] for group in groups for run in group.runs]
    return markdown(["run", "setting", "seed", "steps"], rows, numbers=2)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A Markdown table whose last `numbers` columns are numbers."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, rule, *rows]) + "\n"
