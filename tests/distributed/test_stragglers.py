"""The rank that the others wait for is named, whatever slows it down. Clocks are made: no test depends on the machine's speed."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.distributed.setups import Layout
from tests.distributed.spawn import run_distributed
from tests.distributed.test_metrics import trainer_of
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.training import own_time, step

pytestmark = pytest.mark.slow

LATE_DATA, LATE_DEVICE = 1, 0
"""The ranks whose loader and whose device are slow."""


def measured(processes: Processes, layout: Layout, late_block: int) -> dict[str, float]:
    """The metrics of three steps where one rank's loader takes 5 s, another's block 3 s, and every exchange 100 s."""
    trainer = trainer_of(processes, layout)
    now = 0.0

    def after(seconds: float, of_rank: int | None = None) -> None:
        nonlocal now
        now += seconds if of_rank in (None, processes.rank) else 0.0

    def waits(call: Any) -> Any:
        def collective(*args: Any) -> Any:
            after(100.0)
            return call(*args)

        return collective

    for name in ("gather_rows", "sum", *(["to_experts"] if layout.expert_parallel > 1 else [])):
        setattr(DistributedPeers, name, waits(getattr(DistributedPeers, name)))
    for module in (own_time, step):
        module.time = SimpleNamespace(perf_counter=lambda: now)  # type: ignore[attr-defined]
    drawn = type(trainer.loader).__next__

    def draw(loader: Any) -> Any:
        after(5.0, LATE_DATA)
        return drawn(loader)

    type(trainer.loader).__next__ = draw  # type: ignore[method-assign]
    trainer.engine.module.towers[0].blocks[late_block].register_forward_pre_hook(lambda *_: after(3.0, LATE_DEVICE))
    for _ in range(3):
        outcome = trainer.step()
        report = trainer.conclude(outcome)
    return {name: value for name, value in trainer.measure(outcome, report).items() if name.startswith("perf/ranks/")}


@pytest.mark.parametrize(
    ("layout", "late_block", "times", "passes"),
    [
        (Layout(2, 1, 1), 2, 1, 1),  # the whole forward pass is a rank's own
        (
            Layout(2, 2, 2).with_(train__accumulate=2, train__negatives="micro"),
            0,
            2,
            2,
        ),  # what comes before the first exchange is
        (Layout(2, 2, 2).with_(train__accumulate=2), 0, 2, 4),  # pieces of one batch pass twice
    ],
)
def test_the_slow_rank_is_named_and_waiting_for_it_is_not_counted(layout: Layout, late_block: int, times: int, passes: int):
    told = run_distributed(measured, 2, layout, late_block)
    assert (
        told
        == [
            {
                "perf/ranks/data_seconds/min": 0.0,
                "perf/ranks/data_seconds/max": 5.0 * times,
                "perf/ranks/data_seconds/worst_rank": LATE_DATA,
                "perf/ranks/compute_seconds/min": 0.0,
                "perf/ranks/compute_seconds/max": 3.0 * passes,
                "perf/ranks/compute_seconds/worst_rank": LATE_DEVICE,
            }
        ]
        * 2
    )


def test_with_zero_3_only_the_data_are_a_rank_s_own():
    told, _ = run_distributed(measured, 2, Layout(2, 1, 3), 0)
    assert set(told) == {f"perf/ranks/data_seconds/{what}" for what in ("min", "max", "worst_rank")}
    assert told["perf/ranks/data_seconds/worst_rank"] == LATE_DATA
