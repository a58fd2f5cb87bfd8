"""Which dense runs a model with experts can start from, and what is said about it."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from model.count import count_parameters
from trainer.checkpoint.files import CONFIG
from trainer.checkpoint.upcycle import check_upcycling, upcycles, upcycling_rows
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.training.directory import NEW_WEIGHTS


def checkpoint_with(folder: Path, config: Config) -> Path:
    """What is asked of a checkpoint: its configuration."""
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return folder


@pytest.mark.parametrize(
    ("was", "wanted", "answer"),
    [("dense_tiny", "limoe_tiny", True), ("dense_tiny", "dense_tiny", False), ("limoe_tiny", "limoe_tiny", False)],
)
def test_only_a_dense_run_is_upcycled_and_only_into_a_model_with_experts(tmp_path: Path, was: str, wanted: str, answer: bool):
    assert upcycles(checkpoint_with(tmp_path, compose_config([f"model={was}"])), compose_config([f"model={wanted}"])) == answer


def test_whatever_concerns_experts_alone_may_be_chosen(tmp_path: Path):
    dense = checkpoint_with(tmp_path, compose_config(["model=dense_tiny"]))
    for changes in ("router=loss_free", "router=expert_choice", "router.top_k=2 model.experts=4", "router.normalise_gates=true"):
        check_upcycling(dense, compose_config(["model=limoe_tiny", *changes.split()]), NEW_WEIGHTS)


@pytest.mark.parametrize(
    ("was", "wanted", "told"),
    [
        (["model=two_tower_tiny"], [], "has two towers, which cannot become the one tower of a model with experts: start from a"),
        ([], ["model.shared_experts=1"], "model.shared_experts=1 cannot start from the dense run"),
        ([], ["model.expert_granularity=2"], "use model.expert_granularity=1, or leave out init_from to start with new weights"),
        (
            [],
            ["model.heads=2"],
            r"\(model.heads was 4, is 2\): use model.heads=4, or leave out init_from to start",
        ),
        ([], ["model.mlp=256"], r"belongs to another model \(model.mlp was 512, is 256\)"),
        ([], ["model.layers=6"], r"belongs to another model \(model.layers was 4, is 6\)"),
        ([], ["model.patch=8"], r"belongs to another model \(model.patch was 4, is 8\)"),
    ],
)
def test_what_cannot_be_a_start_is_refused(tmp_path: Path, was: list[str], wanted: list[str], told: str):
    dense = checkpoint_with(tmp_path, compose_config(["model=dense_tiny", *was]))
    config = compose_config(["model=limoe_tiny", *wanted])
    assert upcycles(dense, config)
    with pytest.raises(UserError, match=told) as caught:
        check_upcycling(dense, config, NEW_WEIGHTS)
    assert "\n" not in str(caught.value)


def parameters_in(rows: list[tuple[str, str]]) -> dict[str, int]:
    """The number of parameters in each row that has one."""
    found = {what: re.match(r"([\d,]+) parameters", value) for what, value in rows}
    return {what: int(match[1].replace(",", "")) for what, match in found.items() if match}


def test_the_table_counts_every_parameter():
    config = compose_config(["model=limoe_tiny"])
    counts = parameters_in(upcycling_rows(config))
    mlp = 2 * 128 * 512 + 128 + 512  # of width 128 and 512 hidden, with biases
    assert counts["copied into 8 experts each"] == 2 * mlp
    assert counts["new"] == 2 * 8 * 128
    everything = count_parameters(config.model, config.router).total
    assert counts["taken as it is"] + 8 * 2 * mlp + counts["new"] == everything


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "not the dense model: each expert's output is multiplied by its gate, which starts near 0.125;"),
        (["router.normalise_gates=true", "router.top_k=2"], "the dense model, for each token that gets a slot$"),
        (["router.normalise_gates=true"], "router.top_k=1, normalised gates are all 1, and the router learns from the auxiliary"),
        (["router.normalise_gates=true", "router=expert_choice"], "the dense model, for each token that an expert takes$"),
        (["router.normalise_gates=true", "router.top_k=2", "upcycle_noise=0.1"], "^near the dense model"),
    ],
)
def test_the_table_says_how_the_model_starts(overrides: list[str], told: str):
    rows: dict[str, Any] = dict(upcycling_rows(compose_config(["model=limoe_tiny", *overrides])))
    assert re.search(told, rows["at the start"])
    assert ("with noise of 0.1" in rows["copied into 8 experts each"]) == ("upcycle_noise=0.1" in overrides)
