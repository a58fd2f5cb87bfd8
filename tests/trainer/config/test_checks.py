"""Which configurations are refused for how many processes, and that the line says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config.checks import check_evaluation, check_layout
from trainer.config.schema import Config
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
        (3, {"parallel__expert_parallel": 3}, ("model.experts=8", "parallel.expert_parallel=3")),
        (2, {"parallel__expert_parallel": 2, "model__expert_layers": []}, ("parallel.expert_parallel=2", "no expert layers")),
        (1, {"parallel__timeout_minutes": 0}, ("parallel.timeout_minutes=0",)),
        (2, {"train__batch_size": 15}, ("train.batch_size=15", "2 processes", "multiple of 2")),
        (4, {"train__batch_size": 8, "train__accumulate": 4}, ("train.batch_size=8", "4 processes x 4", "multiple of 16")),
        (4, {"train__batch_size": 0}, ("train.batch_size=0", "multiple of 4")),
        (3, {"train__batch_size": 12}, ("eval.batch_size=256", "3 processes", "multiple of 3")),
        (1, {"eval__batch_size": 0}, ("eval.batch_size=0",)),
        (2, {"router__group_size": 5, "train__batch_size": 32}, ("router.group_size=5", "16 pairs")),
        (1, {"router__group_size": 0}, ("router.group_size=0",)),
        (1, {"router__top_k": 9}, ("router.top_k=9", "model.experts=8")),
        (1, {"router__top_k": 0}, ("router.top_k=0",)),
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
        (1, {"data__mean": [0.5]}, ("data.mean=[0.5]", "three")),
        (1, {"data__std": [0.5, 0.5, float("nan")]}, ("data.std", "three")),
        (1, {"data__std": [0.5, 0.5, 0.0]}, ("data.std=[0.5, 0.5, 0.0]", "above 0")),
        (1, {"train__steps": 0}, ("train.steps=0",)),
        (1, {"train__max_nonfinite_steps": 0}, ("train.max_nonfinite_steps=0",)),
        (1, {"train__ema": 1.0}, ("train.ema=1.0", "between 0 and 1")),
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
        (1, {"seed": -1}, ("seed=-1",)),
        (1, {"run__name": ""}, ("run.name",)),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(world: int, values: dict[str, Any], parts: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        check_layout(config_with(**values), world)
    told = str(caught.value)
    assert "\n" not in told
    assert all(part in told for part in parts), told


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
