"""Which runs a model can start from, how, and what is said about it."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from model.count import count_parameters
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.start import Start, start_from
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.training.directory import NEW_WEIGHTS


def checkpoint_with(folder: Path, config: Config) -> Path:
    """What is asked of a checkpoint: its configuration."""
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return folder


def started(folder: Path, was: list[str], wanted: list[str]) -> Start:
    """How the model of one configuration starts from that of another."""
    if "init_blocks" in " ".join(wanted):
        wanted = [*wanted, "init_from=x"]
    return start_from(checkpoint_with(folder, compose_config(was)), compose_config(wanted), NEW_WEIGHTS)


@pytest.mark.parametrize(
    ("was", "wanted", "answer"),
    [("dense_tiny", "limoe_tiny", True), ("dense_tiny", "dense_tiny", False), ("limoe_tiny", "limoe_tiny", False)],
)
def test_only_a_dense_run_is_upcycled_and_only_into_a_model_with_experts(tmp_path: Path, was: str, wanted: str, answer: bool):
    assert bool(started(tmp_path, [f"model={was}"], [f"model={wanted}"]).upcycled) == answer


def test_whatever_concerns_experts_alone_may_be_chosen(tmp_path: Path):
    for changes in ("router=loss_free", "router=expert_choice", "router.top_k=2 model.experts=4", "router.normalise_gates=true"):
        assert started(tmp_path, ["model=dense_tiny"], ["model=limoe_tiny", *changes.split()]).upcycled == [1, 3]


@pytest.mark.parametrize(
    ("was", "wanted", "told"),
    [
        ([], ["model=two_tower_tiny"], r"\(model.towers was 1, is 2\): use model.towers=1, or leave out init_from to start"),
        ([], ["model.shared_experts=1"], "model.shared_experts=1 cannot start from the dense run"),
        ([], ["model.expert_granularity=2"], "use model.expert_granularity=1, or leave out init_from to start with new weights"),
        (
            [],
            ["model.heads=2"],
            r"\(model.heads was 4, is 2\): use model.heads=4, or leave out init_from to start",
        ),
        ([], ["model.mlp=256"], r"belongs to another model \(model.mlp was 512, is 256\)"),
        (
            [],
            ["model.layers=6"],
            r"has 4 blocks, but model.layers=6: say .* as in init_blocks=\[0,1,2,3,null,null\]; or use",
        ),
        ([], ["init_blocks=[0,1]"], r"init_blocks=\[0,1\] does not fit .*: it names 2 blocks, but model.layers=4$"),
        ([], ["init_blocks=[0,1,2,4]"], r"does not fit .*: there is no block 4, only 0 to 3$"),
        (
            ["model.expert_layers=[0,1]"],
            [],
            r"has experts in the blocks \[0,1\].*: block 0 would .*; use model.expert_layers=\[0,1\], or more",
        ),
        (
            ["model.expert_layers=[1]"],
            ["init_blocks=[1,null,3,0]"],
            r"init_blocks=\[1,null,3,0\] does not fit .*: block 0 would start from a block with experts, but is not in",
        ),
        (["model.expert_layers=[1]"], ["model.experts=4"], r"model.experts was 8, is 4"),
    ],
)
def test_what_cannot_be_a_start_is_refused(tmp_path: Path, was: list[str], wanted: list[str], told: str):
    with pytest.raises(UserError, match=told) as caught:
        started(tmp_path, ["model=dense_tiny", *was], ["model=limoe_tiny", *wanted])
    assert "\n" not in str(caught.value)


def parameters_in(rows: list[tuple[str, str]]) -> dict[str, int]:
    """The number of parameters in each row that has one."""
    found = {what: re.match(r"([\d,]+) parameters", value) for what, value in rows}
    return {what: int(match[1].replace(",", "")) for what, match in found.items() if match}


def test_the_table_counts_every_parameter(tmp_path: Path):
    config = compose_config(["model=limoe_tiny"])
    counts = parameters_in(started(tmp_path, ["model=dense_tiny"], ["model=limoe_tiny"]).rows())
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
def test_the_table_says_how_the_model_starts(tmp_path: Path, overrides: list[str], told: str):
    rows = dict(started(tmp_path, ["model=dense_tiny"], ["model=limoe_tiny", *overrides]).rows())
    assert re.search(told, rows["at the start"])
    assert ("with noise of 0.1" in rows["copied into 8 experts each"]) == ("upcycle_noise=0.1" in overrides)


def test_the_table_tells_what_becomes_of_two_towers(tmp_path: Path):
    rows = dict(started(tmp_path, ["model=two_tower_tiny"], ["model=limoe_tiny"]).rows())
    assert rows["left out"].endswith("parameters: the texts' tower, its projection")
    assert rows["new"].endswith("the routers of blocks 1, 3, and the projection of texts; the optimizer")
    assert "was not trained on any" in rows["texts"]
    two = compose_config(["model=two_tower_tiny"])
    counts = parameters_in(list(rows.items()))
    everything = count_parameters(two.model, two.router).total
    assert counts["taken as it is"] + counts["copied into 8 experts each"] + counts["left out"] == everything


def test_the_table_tells_what_is_fitted(tmp_path: Path):
    wanted = ["model.image_size=64", "model.patch=16", "model.text_length=24", "model.layers=6", "model.vocabulary=1024"]
    start = started(tmp_path, [], [*wanted, "init_blocks=[0,1,2,3,2,null]", "model.expert_layers=[1,3]"])
    rows = dict(start.rows())
    assert rows["blocks"] == "0 from 0, 1 from 1, 2 from 2, 3 from 3, 4 from 2, 5 is new"
    assert rows["positions of patches"] == "8 x 8 interpolated to 4 x 4"
    assert rows["patch projection"] == "4 x 4 pixels resized to 16 x 16"
    assert rows["positions of text"] == "16 taken, 8 new"
    assert rows["token table"] == "the first 1024 of 2048"
    assert rows["new"].endswith("parameters; the optimizer")
    assert not start.is_as_it_was


def test_nothing_is_told_of_a_model_that_stays_what_it_was(tmp_path: Path):
    assert started(tmp_path, [], []).is_as_it_was


@pytest.mark.parametrize(
    ("before", "after", "row"),
    [
        ("softmax", "sigmoid", ("scale and bias of the logits", "new for model.loss=sigmoid, at 10 and -7.5")),
        ("sigmoid", "softmax", ("scale of the logits", "new for model.loss=softmax, at 10")),
        ("sigmoid", "sigmoid", None),
    ],
)
def test_another_loss_starts_with_new_logits(tmp_path: Path, before: str, after: str, row: tuple[str, str] | None):
    start = started(tmp_path, [f"model.loss={before}"], [f"model.loss={after}", "model.initial_bias=-7.5"])
    rows = start.rows()
    assert [found for found in rows if "logits" in found[0]] == ([] if row is None else [row])
    assert parameters_in(rows).get("new", 0) == (0 if row is None else 1 + (after == "sigmoid"))
    assert start.is_as_it_was == (row is None)


def test_the_table_of_tokens_is_new_for_another_tokenizer_alone(tmp_path: Path):
    (tmp_path / TOKENIZER).write_bytes(b"one")
    for name, content in (("same", b"one"), ("other", b"two")):
        (tmp_path / name).write_bytes(content)
        start = started(tmp_path, [], [f"data.tokenizer={tmp_path / name}"])
        assert start.adaptation.same_pieces == (name == "same")
        assert dict(start.rows()).get("token table") == (None if name == "same" else "new, for another tokenizer")


def test_all_that_must_be_changed_is_named_at_once_and_the_proposal_works(tmp_path: Path):
    was = ["model=limoe_tiny"]
    wanted = ["model.width=64", "model.layers=2", "model.expert_layers=[1]"]
    with pytest.raises(UserError, match=r"model.width was 128, is 64") as caught:
        started(tmp_path, was, wanted)
    proposal = re.search(r": use (.*), or leave out", str(caught.value))
    assert proposal
    assert not list(started(tmp_path, was, [*wanted, *proposal[1].split()]).upcycled)
