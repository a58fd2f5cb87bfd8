"""The end of a step: what one rank knows reaches all of them, in one reduction, whatever is asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO
from trainer.config.compose import compose_config
from trainer.distributed.processes import Processes
from trainer.training.boundary import Boundary, Standing, agree
from trainer.training.run import train
from trainer.training.step import Trainer

pytestmark = pytest.mark.slow

WORLD = 3


def stand(processes: Processes, standings: list[dict[str, Any]]) -> Boundary:
    """Agree on what each rank brings."""
    mine = standings[processes.rank]
    return agree(Standing(torch.tensor(mine.pop("loss", 0.0)), **mine), processes)


NOTHING = Boundary(
    contrastive=0.0,
    auxiliary=0.0,
    read=0,
    bad=0,
    shards_read=0,
    bad_shards=0,
    truncated=0,
    stop_signal=0,
    all_written=False,
    minutes_over=False,
    own_seconds={},
)


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ([{}, {}, {}], {}),
        ([{"loss": 1.0}, {"loss": 2.0}, {"loss": 6.0}], {"contrastive": 3.0}),
        ([{"read": 10**12 + 1, "bad": 1}, {"read": 2}, {"bad": 4}], {"read": 10**12 + 3, "bad": 5}),
        ([{"shards_read": 3}, {"shards_read": 4, "bad_shards": 1}, {"bad_shards": 1}], {"shards_read": 7, "bad_shards": 2}),
        ([{"truncated": 3}, {}, {"truncated": 4}], {"truncated": 7}),
        ([{"stop_signal": 2}, {"stop_signal": 15}, {"stop_signal": 10}], {"stop_signal": 15}),
        ([{}, {}, {"stop_signal": 12}], {"stop_signal": 12}),
        ([{"written": True}, {"written": True}, {}], {}),
        ([{"written": True}] * WORLD, {"all_written": True}),
        ([{"minutes_over": True}, {}, {}], {"minutes_over": True}),
        ([{}, {"minutes_over": True}, {"minutes_over": True}], {}),
        (
            [
                {"own_seconds": {"a": 0.1, "b": 1e-9}},
                {"own_seconds": {"a": 3.0, "b": 0.0}},
                {"own_seconds": {"a": 0.0, "b": 1e9}},
            ],
            {"own_seconds": {"a": [0.1, 3.0, 0.0], "b": [1e-9, 0.0, 1e9]}},
        ),
    ],
)
def test_every_rank_learns_the_same(standings: list[dict[str, Any]], expected: dict[str, Any]):
    told = run_distributed(stand, WORLD, [dict(standing) for standing in standings])
    assert told == [replace(NOTHING, **expected)] * WORLD


def count_collectives(processes: Processes, overrides: list[str]) -> list[list[str]]:
    """Train; the collectives between the end of a step's learning and the start of the next one's, step by step."""
    steps: list[list[str]] = []
    took = Trainer.step

    def step(trainer: Trainer) -> Any:
        steps.append([])
        outcome = took(trainer)
        steps[-1].clear()  # what the learning itself takes
        return outcome

    def counted(name: str) -> Any:
        original = getattr(Processes, name)

        def call(self: Processes, *args: Any) -> Any:
            if steps:
                steps[-1].append(name)
            return original(self, *args)

        return call

    Trainer.step = step  # type: ignore[method-assign]
    for name in ("sum", "gather_objects", "from_first", "gather_rows", "barrier"):
        setattr(Processes, name, counted(name))
    train(compose_config(overrides), processes)
    return steps


def test_a_step_without_evaluation_and_checkpoint_ends_in_one_reduction(tmp_path):
    overrides = [*COMMON, *TWO, f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}", "train.steps=4"]
    first, second = run_distributed(count_collectives, 2, [*overrides, "checkpoint.every_steps=0", "checkpoint.every_minutes=60"])
    assert first == second
    assert first[:3] == [["sum"]] * 3
    assert len(first[3]) > 1, "the last step is saved, which these counters see"


def train_with_clocks(processes: Processes, overrides: list[str]) -> int:
    """Train where rank 1's clock runs a thousand times as fast as rank 0's."""
    from trainer.training import saver

    if processes.rank == 1:

        class Fast:
            @staticmethod
            def monotonic() -> float:
                return 1e9

        saver.time = Fast  # type: ignore[assignment]
    return train(compose_config(overrides), processes)


def test_only_the_first_ranks_clock_decides_when_minutes_are_over(tmp_path):
    overrides = [*COMMON, *TWO, f"data.cache={tmp_path / 'cache'}", "train.steps=3", "checkpoint.every_steps=0"]
    for minutes, saved in ((1000, [3]), (1e-9, [1, 2, 3])):
        run_dir = tmp_path / f"run-{minutes}"
        overrides_here = [*overrides, f"run.dir={run_dir}", f"checkpoint.every_minutes={minutes}"]
        assert run_distributed(train_with_clocks, 2, overrides_here) == [0, 0]
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in saved]
