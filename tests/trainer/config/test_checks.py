"""Which configurations are refused for how many processes, and that the line says why."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.checks import check_evaluation, check_layout, layout_problems
from trainer.config.keys import KEYS, Key, value_of
from trainer.config.schema import Config
from trainer.data.shapes.write import TRAIN_SHARDS, VAL_SHARDS
from trainer.distributed.processes import Processes
from trainer.engine.placement import layout_rows
from trainer.errors import UserError


def config_with(**values: Any) -> Config:
    """The default (a mixture of 8 experts in blocks 1 and 3) with dotted names, `__` for the dot, set."""
    config = Config()
    config.model.expert_layers = [1, 3]
    for name, value in values.items():
        *path, leaf = name.split("__")
        owner: Any = config
        for part in path:
            owner = getattr(owner, part)
        assert hasattr(owner, leaf)
        setattr(owner, leaf, value)
    return config


@pytest.mark.parametrize(
    ("world", "values"),
    [
        (1, {}),
        (2, {"parallel__expert_parallel": 2, "parallel__zero_stage": 3}),
        (8, {"parallel__expert_parallel": 4}),
        (3, {"train__batch_size": 12, "eval__batch_size": 3}),
        (2, {"train__accumulate": 4, "train__batch_size": 8}),
        (2, {"router__group_size": 8, "train__batch_size": 32}),
        (2, {"router__group_size": 999, "train__batch_size": 32}),  # more than there are: one group
        (4, {"model__expert_layers": [], "model__towers": 2}),
        (1, {"log__every": 0, "eval__every": 0, "checkpoint__every_steps": None, "checkpoint__every_minutes": 0.5}),
        (1, {"router__top_k": 8, "router__noise": 0.0, "router__eval_capacity_factor": 2.0}),
        (8, {"parallel__expert_parallel": 8, "model__expert_granularity": 2, "model__experts": 4}),
        (1, {"model__shared_experts": 2, "router__choice": "expert", "router__aux__load": 0.0}),
        (1, {"router__bias__kind": "modality", "router__bias__text_rate": 0.1, "router__aux__load": 0.0}),
    ],
)
def test_what_can_run_is_let_through(world: int, values: dict[str, Any]):
    check_layout(config_with(**values), world)


@pytest.mark.parametrize(
    ("world", "values", "parts"),
    [
        (1, {"parallel__zero_stage": 0}, ("parallel.zero_stage=0", "choose 1, 2 or 3", "clips")),
        (1, {"parallel__zero_stage": 4}, ("parallel.zero_stage=4", "choose 1, 2 or 3")),
        (1, {"parallel__expert_parallel": 2}, ("parallel.expert_parallel=2", "1 process ", "--nproc-per-node 2")),
        (6, {"parallel__expert_parallel": 4}, ("parallel.expert_parallel=4", "6 processes", "parallel.expert_parallel=2")),
        (1, {"parallel__expert_parallel": 0}, ("parallel.expert_parallel=0",)),
        (3, {"parallel__expert_parallel": 3}, ("model.experts=8", "=3", "use parallel.expert_parallel=1")),
        (2, {"parallel__expert_parallel": 2, "model__expert_layers": []}, ("parallel.expert_parallel=2", "no expert layers")),
        (1, {"parallel__timeout_minutes": 0}, ("parallel.timeout_minutes=0",)),
        (2, {"train__batch_size": 15}, ("train.batch_size=15", "2 processes", "multiple of 2")),
        (4, {"train__batch_size": 8, "train__accumulate": 4}, ("train.batch_size=8", "4 processes x 4", "multiple of 16")),
        (4, {"train__batch_size": 0}, ("train.batch_size=0", "at least 1")),
        (3, {"train__batch_size": 12}, ("eval.batch_size=256", "3 processes", "multiple of 3")),
        (1, {"eval__batch_size": 0}, ("eval.batch_size=0",)),
        (2, {"router__group_size": 5, "train__batch_size": 32}, ("router.group_size=5", "16 pairs")),
        (1, {"router__group_size": 0}, ("router.group_size=0",)),
        (1, {"router__top_k": 9}, ("router.top_k=9", "model.experts=8")),
        (1, {"router__top_k": 0}, ("router.top_k=0",)),
        (1, {"router__choice": "expert"}, ("router.aux.load=1", "router.choice=expert", "use router.aux.load=0")),
        (
            1,
            {"router__choice": "expert", "router__aux__load": 0.0, "router__bias__kind": "shared"},
            ("router.bias.kind=shared", "use router.bias.kind=none"),
        ),
        (1, {"model__expert_granularity": 3}, ("model.mlp=512", "model.expert_granularity=3", "use model.expert_granularity=2")),
        (
            3,
            {"parallel__expert_parallel": 3, "model__expert_granularity": 2},
            ("model.experts=8 * model.expert_granularity=2", "use parallel.expert_parallel=1"),
        ),
        (1, {"router__bias__kind": "shard"}, ("router.bias.kind=shard", "none, shared or modality")),
        (1, {"router__bias__kind": "shared"}, ("router.aux.load=1", "router.bias.kind=shared", "use router.aux.load=0")),
        (
            1,
            {"router__bias__kind": "shared", "router__aux__load": 0.0, "router__bias__text_rate": 0.1},
            ("router.bias.text_rate=0.1", "use router.bias.kind=modality"),
        ),
        (1, {"router__bias__rate": -1.0}, ("router.bias.rate", "at least 0")),
        (1, {"router__priority": "gates"}, ("router.priority=gates", "gate", "order")),
        (1, {"router__capacity_factor": 0.0}, ("router.capacity_factor",)),
        (1, {"router__eval_capacity_factor": -1.0}, ("router.eval_capacity_factor",)),
        (1, {"router__noise": -1.0}, ("router.noise=-1.0",)),
        (1, {"router__aux__text_share": 0.0}, ("router.aux.text_share",)),
        (1, {"model__heads": 3}, ("model.width=128", "model.heads=3")),
        (1, {"model__heads": 0}, ("model.heads=0",)),
        (1, {"model__patch": 5}, ("model.image_size=32", "model.patch=5")),
        (1, {"model__patch": 0}, ("model.patch=0",)),
        (1, {"model__towers": 3}, ("model.towers=3",)),
        (1, {"model__towers": 2}, ("model.towers=2", "model.expert_layers=[]")),
        (1, {"model__expert_layers": [1, 4]}, ("model.expert_layers", "[4]", "0 to 3")),
        (1, {"model__expert_layers": [1, 1]}, ("model.expert_layers=[1, 1]", "twice")),
        (1, {"train__precision": "fp16"}, ("train.precision=fp16", "bf16 or fp32")),
        (1, {"train__grad_dtype": "fp16"}, ("train.grad_dtype=fp16", "fp32 or bf16")),
        (1, {"train__precision": "fp32", "train__grad_dtype": "bf16"}, ("train.grad_dtype=bf16", "train.precision=bf16")),
        (1, {"train__activation_checkpointing": "all"}, ("train.activation_checkpointing=all", "none, blocks or offload")),
        (1, {"data__mean": [0.5]}, ("data.mean=[0.5]", "three numbers")),
        (1, {"data__std": [0.5, 0.5, float("nan")]}, ("data.std", "three")),
        (1, {"data__std": [0.5, 0.5, 0.0]}, ("data.std=[0.5, 0.5, 0.0]", "above 0")),
        (1, {"train__steps": 0}, ("train.steps=0",)),
        (1, {"train__max_nonfinite_steps": 0}, ("train.max_nonfinite_steps=0",)),
        (1, {"train__ema": 1.0}, ("train.ema=1.0", "above 0 and below 1")),
        (1, {"train__ema": 0.0}, ("train.ema=0.0",)),
        (1, {"optim__lr": 0.0}, ("optim.lr=0.0",)),
        (1, {"optim__lr": float("nan")}, ("optim.lr=nan",)),
        (1, {"optim__beta2": 1.0}, ("optim.beta2=1.0",)),
        (1, {"optim__clip_norm": -1.0}, ("optim.clip_norm=-1.0",)),
        (1, {"log__every": -1}, ("log.every=-1",)),
        (1, {"checkpoint__every_minutes": -1.0}, ("checkpoint.every_minutes=-1.0",)),
        (1, {"parallel__lost_after_seconds": 0.0}, ("parallel.lost_after_seconds=0.0",)),
        (1, {"checkpoint__keep": 0}, ("checkpoint.keep=0",)),
        (1, {"checkpoint__keep_every": 0}, ("checkpoint.keep_every=0",)),
        (1, {"checkpoint__best_mode": "most"}, ("checkpoint.best_mode=most", "max or min")),
        (1, {"checkpoint__on_failure": "retry"}, ("checkpoint.on_failure=retry", "stop or continue")),
        (1, {"checkpoint__timeout_minutes": 0.0}, ("checkpoint.timeout_minutes=0.0",)),
        (1, {"seed": -1}, ("seed=-1", "at least 0 and at most 4294967295")),
        (1, {"seed": 2**32}, ("seed=4294967296",)),
        (1, {"data__kind": "shape"}, ("data.kind=shape: choose shapes, shapes_hard or webdataset (did you mean 'shapes'?)",)),
        (1, {"data__workers": -1}, ("data.workers=-1 must be at least 0",)),
        (1, {"data__shuffle_buffer": -1}, ("data.shuffle_buffer=-1", "no shuffling within shards")),
        (1, {"data__streams": 0}, ("data.streams=0 must be at least 1 (null chooses it automatically)",)),
        (1, {"data__crop_scale": [0.9, 0.5]}, ("data.crop_scale=[0.9, 0.5] must be two numbers, the smaller one first",)),
        (1, {"data__crop_scale": [0.5, 1.5]}, ("data.crop_scale=[0.5, 1.5]", "each above 0 and at most 1")),
        (1, {"data__crop_ratio": [1.0]}, ("data.crop_ratio=[1.0] must be two numbers",)),
        (1, {"data__crop_ratio": [1.0, float("inf")]}, ("data.crop_ratio=[1.0, inf]", "and finite")),
        (1, {"data__background": [255, 255]}, ("data.background=[255, 255] must be three numbers, each at least 0 and at most",)),
        (1, {"data__background": [0, 0, 256]}, ("data.background=[0, 0, 256]",)),
        (1, {"data__max_bad_share": 1.5}, ("data.max_bad_share=1.5", "at most 1")),
        (1, {"data__shapes_train": 15}, ("data.shapes_train=15 must be at least 16 (one pair per shard)",)),
        (1, {"data__tokenizer": ""}, ("data.tokenizer must not be empty",)),
        (1, {"log__progress": "line"}, ("log.progress=line: choose", "(did you mean 'lines'?)")),
        (1, {"log__wandb": "offlin"}, ("log.wandb=offlin: choose", "(did you mean 'offline'?)")),
        (1, {"log__artifacts": "best"}, ("log.artifacts=best needs a metric: add checkpoint.best=", "log.artifacts=last")),
        (1, {"log__tags": ["a", ""]}, ("log.tags must not be empty",)),
        (1, {"run__device": "gpu"}, ("run.device=gpu: choose auto, cpu or cuda",)),
        (1, {"router__aux__z": float("nan")}, ("router.aux.z=nan must be a finite number",)),
        (1, {"optim__lr": float("inf")}, ("optim.lr=inf must be above 0 and finite",)),
        (1, {"schedule__kind": "cosinus"}, ("schedule.kind=cosinus", "(did you mean 'cosine'?)")),
        (1, {"schedule__warmup_steps": -1}, ("schedule.warmup_steps=-1 must be at least 0",)),
        (1, {"schedule__timescale": 0}, ("schedule.timescale=0 must be at least 1",)),
        (1, {"schedule__final_factor": -0.5}, ("schedule.final_factor=-0.5",)),
        (1, {"schedule__kind": "rsqrt", "schedule__cooldown_steps": 901}, ("do not fit train.steps=1000",)),
        (1, {"run__name": ""}, ("run.name",)),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(world: int, values: dict[str, Any], parts: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        check_layout(config_with(**values), world)
    told = str(caught.value)
    assert "\n" not in told
    assert all(part in told for part in parts), told


SIZES = st.integers(1, 24)
KEY_AND_VALUE = re.compile(r"\b([a-z]+(?:\.[a-z_]+)+)=(\[[\d,]*\]|\d+)")


@given(
    world=st.integers(1, 8),
    values=st.fixed_dictionaries(
        {
            "model__width": SIZES,
            "model__heads": SIZES,
            "model__image_size": SIZES,
            "model__patch": SIZES,
            "model__layers": st.integers(1, 4),
            "model__experts": SIZES,
            "model__expert_layers": st.lists(st.integers(0, 5), max_size=3),
            "model__towers": st.sampled_from([1, 2]),
            "router__top_k": SIZES,
            "router__group_size": st.none() | SIZES,
            "data__workers": st.integers(0, 4),
            "parallel__expert_parallel": SIZES,
            "train__batch_size": st.integers(1, 100),
            "train__accumulate": st.integers(1, 4),
            "train__steps": SIZES,
            "eval__batch_size": st.integers(1, 100),
            "schedule__kind": st.sampled_from(["cosine", "rsqrt"]),
            "schedule__warmup_steps": st.integers(0, 30),
            "schedule__cooldown_steps": st.integers(0, 30),
        }
    ),
)
def test_who_does_what_the_lines_propose_gets_a_run(world: int, values: dict[str, Any]):
    config = config_with(**values)
    for _ in range(10):
        problems = list(layout_problems(config, world).values())
        if not problems:
            return
        proposals = problems[0].rpartition(": ")[2].split(", or ")
        changes = next(found for proposal in proposals if (found := KEY_AND_VALUE.findall(proposal)))
        for key, value in changes:
            section, _, leaf = key.rpartition(".")
            setattr(value_of(config, section), leaf, json.loads(value))
        assert problems[0] not in layout_problems(config, world).values(), problems[0]
    raise AssertionError(problems)


def test_all_that_is_wrong_is_found_at_once_and_each_thing_once():
    config = config_with(optim__lr=0.0, model__heads=0, train__batch_size=3, log__wandb="no", eval__batch_size=5)
    problems = layout_problems(config, 2)
    assert list(problems) == ["model.heads", "optim.lr", "log.wandb", "train router.group_size", "eval.batch_size"]
    with pytest.raises(UserError, match=r"model\.heads=0 must be at least 1 \(and 4 more: run\.dry=true shows them all\)"):
        check_layout(config, 2)


@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_every_key_says_what_it_means_and_its_default_can_be(name: str, key: Key):
    assert key.option.meaning, f"{name}: declare it with model.option.option in trainer/config/schema.py or model/config.py"
    assert key.refusal(key.default) is None


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.kind in (float, float | None, list[float])])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_may_be_infinite_or_none(key: Key, value: float):
    told = key.refusal([value] * (key.option.length or 1) if key.kind == list[float] else value)
    assert told is not None
    assert told.startswith(f"{key.name}=")
    assert "finite" in told


def test_the_embedded_data_set_has_a_pair_for_each_shard():
    assert KEYS["data.shapes_train"].option.at_least == TRAIN_SHARDS
    assert KEYS["data.shapes_val"].option.at_least == VAL_SHARDS


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"eval__batch_size": 256}, "eval.batch_size=256"),
        ({"parallel__expert_parallel": 2}, "parallel.expert_parallel=2"),
        ({"train__precision": "fp16"}, "train.precision=fp16"),
        ({"model__heads": 3}, "model.heads=3"),
        ({"data__std": [1.0]}, "data.std"),
    ],
)
def test_an_evaluation_asks_for_what_it_needs_and_no_training_batch(values: dict[str, Any], part: str):
    good = {"eval__batch_size": 9, "train__batch_size": 7, "train__accumulate": 5}
    check_evaluation(config_with(**good), world=3)
    with pytest.raises(UserError, match=part):
        check_evaluation(config_with(**good | values), world=3)


@pytest.mark.parametrize(("rank", "owned"), [(0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (2, [0, 1, 2, 3]), (3, [4, 5, 6, 7])])
def test_the_table_names_the_experts_of_a_rank(monkeypatch: pytest.MonkeyPatch, rank: int, owned: list[int]):
    gather: Callable[..., Any] = lambda self, value: [value]  # noqa: E731
    monkeypatch.setattr(Processes, "gather_objects", gather)
    (row,) = layout_rows(config_with(parallel__expert_parallel=2), Processes(rank, 4, rank, torch.device("cpu")))
    assert (row["rank"], row["ep_rank"], row["experts"], row["device"]) == (rank, rank % 2, owned, "cpu")


def test_the_table_of_a_dense_model_names_no_experts():
    (row,) = layout_rows(config_with(model__expert_layers=[]), Processes(0, 1, 0, torch.device("cpu")))
    assert row["experts"] == []
