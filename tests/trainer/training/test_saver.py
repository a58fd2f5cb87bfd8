"""An alert about a checkpoint that was not written: once, until one is."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.checkpoint.save import SaveReport
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.reporting.alerts import Alert
from trainer.training.opening import OpenRun
from trainer.training.saver import Saver


class Disk:
    """A Checkpointer whose waits end as they are told to."""

    def __init__(self, problems: list[str | None], stops: bool) -> None:
        self.problem: str | None = None
        self._problems, self._stops = problems, stops

    def wait(self, must_succeed: bool) -> SaveReport | None:
        self.problem = self._problems.pop(0)
        if self.problem and self._stops:
            raise UserError(self.problem)
        return None if self.problem else SaveReport(1, 0.0, 0.0, 0)


def saver(disk: Disk, alerts: list[Alert]) -> Saver:
    def alert(raised: Alert, is_told: bool) -> None:
        assert is_told, "the checkpointer has said so already"
        alerts.append(raised)

    run: Any = SimpleNamespace(
        config=Config(),
        checkpointer=disk,
        recorder=SimpleNamespace(alert=alert, write=lambda step, metrics: None),
        position=SimpleNamespace(saved=lambda step: None),
        progress=SimpleNamespace(step=1),
    )
    return Saver(cast(OpenRun, run))


def test_failures_in_a_row_are_one_alert_and_a_later_one_is_another():
    alerts: list[Alert] = []
    saves = saver(Disk([None, "full at 2", "full at 3", None, "full at 5"], stops=False), alerts)
    for _ in range(5):
        saves.collect()
    assert [alert.text for alert in alerts] == ["full at 2", "full at 5"]
    assert len(alerts[0].title) < 64


def test_a_failure_that_ends_the_run_is_told_before():
    alerts: list[Alert] = []
    with pytest.raises(UserError, match="full"):
        saver(Disk(["full"], stops=True), alerts).collect(must_succeed=True)
    assert [alert.text for alert in alerts] == ["full"]
