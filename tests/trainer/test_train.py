"""`python -m trainer.train`: what it does around a run."""

import pytest

from trainer.config.schema import Config
from trainer.distributed.processes import ALONE, Processes
from trainer.train import train


@pytest.mark.parametrize(
    ("code", "asked", "rank", "written"), [(0, True, 0, True), (0, False, 0, False), (0, True, 1, False), (3, True, 0, False)]
)
def test_a_run_that_came_to_its_end_leaves_a_page(
    monkeypatch: pytest.MonkeyPatch, code: int, asked: bool, rank: int, written: bool
):
    """Once, and not when it was asked to stop, which leaves little time."""
    places = []
    monkeypatch.setattr("trainer.training.run.train", lambda config, processes, draw_experts: code)
    monkeypatch.setattr("trainer.report.html.write.write_after_training", places.append)
    config = Config()
    config.log.report = asked
    assert train(config, Processes(rank, 2, rank, ALONE.device)) == code
    assert [str(place) for place in places] == ([config.run.dir] if written else [])
