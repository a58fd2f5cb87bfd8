"""Routers of other kinds than LIMoE's train alike in every layout."""

from typing import Any

import pytest

from tests.distributed.setups import BATCH, Layout
from tests.distributed.test_layouts import assert_same_training, check, expected, trained

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "sigmoid": {
        "router__gates": "sigmoid",
        "router__top_k": 2,
        "router__bias__kind": "shared",
        "router__bias__rate": 0.05,
        "router__aux__load": 0.0,
    },
    "finer and shared": {"model__expert_granularity": 2, "model__shared_experts": 1},
}
EXPERT_CHOICE = {"router__choice": "expert", "router__aux__load": 0.0, "router__capacity_factor": 1.0}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_layout_trains_like_plain_torch(kind):
    check(*(Layout(2, ep, stage).with_(**kind) for ep, stage in ((1, 1), (2, 2), (2, 3))))


def test_experts_choose_the_same_tokens_in_every_layout():
    layouts = [Layout(2, ep, stage).with_(**EXPERT_CHOICE) for ep, stage in ((1, 2), (2, 1), (2, 3))]
    # They choose among the pairs of a process.
    reference = expected(Layout().with_(**EXPERT_CHOICE, router__group_size=BATCH // 2).changes)
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, reference)


def test_recomputed_and_compiled_blocks_change_nothing():
    for kind in (KINDS["finer and shared"], EXPERT_CHOICE):
        check(Layout(1, 1, 1).with_(**kind, train__activation_checkpointing="blocks", train__compile=True))
