"""Which value of a metric is its best."""

import pytest

from trainer.reporting.summaries import best_of, best_values, better


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("eval/zeroshot/top1", "max"),
        ("eval/zeroshot_unseen/top1", "max"),
        ("eval/retrieval/t2i_r5", "max"),
        ("eval/retrieval/bad_samples", None),
        ("train/loss", "min"),
        ("train/loss_contrastive", "min"),
        ("train/loss_aux", None),
        ("routing/success/text", "max"),
        ("routing/layer03/success/text", None),
        ("perf/step_seconds", "min"),
        ("perf/checkpoint_seconds", None),
    ],
)
def test_the_best(name: str, best: str | None):
    assert best_of(name) == best


def test_the_better_of_two():
    assert better("eval/zeroshot/top1", 0.5, 0.25) == 0.5
    assert better("train/loss", 0.5, 0.25) == 0.25


def test_the_best_so_far_is_read_from_what_a_run_has_written():
    lines = [
        '{"step": 1, "train/loss": 3.0, "train/lr": 0.1}',
        '{"step": 2, "train/loss": null, "eval/zeroshot/top1": 0.5}',
        "[1]",
        '{"step": 3, "train/loss": 2.0, "eval/zeroshot/top1": 0.25}',
        '{"step": 4, "train/lo',
    ]
    assert best_values(lines) == {"train/loss": 2.0, "eval/zeroshot/top1": 0.5}
