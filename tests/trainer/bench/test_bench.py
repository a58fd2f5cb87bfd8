"""The benchmark's command line; that it measures what it says is in tests/distributed/test_bench.py."""

import pytest

from trainer.bench.__main__ import read_arguments
from trainer.errors import UserError


def test_a_benchmark_and_its_models():
    assert read_arguments(["checkpoint"]) == read_arguments(["--name", "checkpoint"]) == ("checkpoint", [])
    assert read_arguments(["models=dense_s32,limoe_s32", "checkpoint"]) == ("checkpoint", ["dense_s32", "limoe_s32"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name=NAME is missing (the benchmark: accumulate, checkpoint, step or watching)"),
        (["checkpoint", "step"], "'step'"),
        (["checkpoints"], "name=checkpoints: choose accumulate, checkpoint, step or watching (did you mean 'checkpoint'?)"),
        (["checkpoint", "models=a", "models=b"], "models is given twice"),
        (["checkpoint", "model=a"], "trainer.bench has no 'model' (did you mean 'models'?)"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
