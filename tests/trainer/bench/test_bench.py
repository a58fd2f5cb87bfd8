"""The benchmark's command line; that it measures what it says is in tests/distributed/test_bench.py."""

import pytest

from trainer.bench.__main__ import Asked, read_arguments
from trainer.errors import UserError


def test_a_benchmark_and_its_models():
    assert read_arguments(["checkpoint"]) == read_arguments(["--name", "checkpoint"]) == Asked("checkpoint", [])
    chosen = read_arguments(["models=dense_s32,limoe_s32", "checkpoint", "threads=2"])
    assert chosen == Asked("checkpoint", ["dense_s32", "limoe_s32"], 2)
    assert chosen.arguments == "checkpoint models=dense_s32,limoe_s32 threads=2"


def test_the_layer_and_its_rows():
    asked = read_arguments(["layer", "rows=512:32:4:fp32,512:32:4:bf16"])
    assert asked == Asked("layer", ["512:32:4:fp32", "512:32:4:bf16"])
    assert asked.arguments == "layer rows=512:32:4:fp32,512:32:4:bf16"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name=NAME is missing (the benchmark: accumulate, checkpoint, layer, step or watching)"),
        (["checkpoint", "step"], "'step'"),
        (
            ["checkpoints"],
            "name=checkpoints: choose accumulate, checkpoint, layer, step or watching (did you mean 'checkpoint'?)",
        ),
        (["checkpoint", "rows=512:32:4:fp32"], "rows=512:32:4:fp32: checkpoint has no rows"),
        (["layer", "models=limoe_tiny"], "models=limoe_tiny: layer has no models"),
        (["layer", "rows=512:32:4"], "rows=512:32:4: write tokens:width:experts:fp32"),
        (["layer", "rows=512:32:5:fp32"], "tokens divisible by experts"),
        (["layer", "rows=512:32:4:fp16"], "fp32 or :bf16"),
        (["layer", "threads=0"], "threads=0: write a number from 1"),
        (["checkpoint", "models=a", "models=b"], "models is given twice"),
        (["checkpoint", "model=a"], "trainer.bench has no 'model' (did you mean 'models'?)"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
