"""Alerts: what raises them, once an episode, and what does not."""

import pytest

from trainer.config.schema import AlertsConfig
from trainer.reporting.alerts import RULES, Alerts

RECORDS, WARM_UP = 3, 10
HEALTHY = {
    "routing/success/image": 0.9,
    "routing/success/text": 0.8,
    "routing/dead_experts": 0.0,
    "train/skipped_steps": 0.0,
    "perf/data_seconds": 0.1,
    "perf/step_seconds": 1.0,
    "perf/ranks/data_seconds/min": 0.01,
    "perf/ranks/data_seconds/max": 0.1,
    "perf/ranks/data_seconds/worst_rank": 3.0,
}


def raised(changes: list[dict[str, float]], first: int = WARM_UP + 1, **config: float | None) -> list[tuple[int, str]]:
    """The step and the title of each alert in a run whose records differ from healthy ones by this."""
    asked = AlertsConfig(**({"records": RECORDS} | config))  # type: ignore[arg-type]
    alerts = Alerts(asked, WARM_UP)
    return [(step, alert.title) for step, change in enumerate(changes, first) for alert in alerts.look(step, HEALTHY | change)]


LASTING = {
    "Tokens find no slot": {"routing/success/text": 0.4},
    "Experts are dead": {"routing/dead_experts": 1.0},
    "Training waits for data": {"perf/data_seconds": 0.7},
    "A rank is slow": {"perf/ranks/data_seconds/max": 0.3},
}
each_lasting = pytest.mark.parametrize("title", LASTING)


def test_a_healthy_run_raises_none():
    assert raised([{}] * 50) == []


@each_lasting
def test_what_lasts_is_told_once(title: str):
    bad = LASTING[title]
    assert raised([bad] * (RECORDS - 1) + [{}] + [bad] * (RECORDS - 1)) == [], "never so many in a row"
    assert raised([{}, *[bad] * 30]) == [(11 + RECORDS, title)]


@each_lasting
def test_an_episode_ends_with_as_many_good_records(title: str):
    bad = LASTING[title]
    flickering = [bad] * RECORDS + [{}] * (RECORDS - 1) + [bad] * RECORDS
    assert len(raised(flickering)) == 1
    assert len(raised([bad] * RECORDS + [{}] * RECORDS + [bad] * RECORDS)) == 2


def test_each_modality_has_an_episode_of_its_own():
    text, both = {"routing/success/text": 0.1}, {"routing/success/text": 0.1, "routing/success/image": 0.1}
    assert [step for step, _ in raised([text, text, text, both, both, both])] == [13, 16]


def test_the_line_says_which_modality_and_how_much():
    alerts = Alerts(AlertsConfig(records=1), 0)
    (alert,) = alerts.look(40, HEALTHY | {"routing/success/text": 0.314})
    assert alert.text.startswith("step 40: only 31% of the text tokens get a slot")


def test_the_slow_rank_is_named():
    alerts = Alerts(AlertsConfig(records=1), 0)
    (alert,) = alerts.look(7, HEALTHY | {"perf/ranks/data_seconds/max": 0.41})
    assert alert.text == "step 7: the others wait for rank 3, which waits for its data longer than the quickest by 40% of a step"


def test_routing_may_be_anything_during_the_warm_up():
    bad = LASTING["Tokens find no slot"] | LASTING["Experts are dead"]
    assert raised([bad] * WARM_UP, first=1) == []
    told = raised([bad] * (WARM_UP + RECORDS), first=1)
    assert {step for step, _ in told} == {WARM_UP + RECORDS} and len(told) == 2, "and it counts from there on"


def test_skipped_steps_are_told_at_once_but_not_those_from_before_a_resume():
    skipped = [{"train/skipped_steps": float(steps)} for steps in (4, 4, 5, 6, 7, 7, 7, 7, 8)]
    assert [step - 11 for step, _ in raised(skipped, first=11)] == [2, 8]


def test_other_records_say_nothing_about_a_rule():
    """An evaluation between two records neither counts as good nor as bad."""
    alerts = Alerts(AlertsConfig(records=2), 0)
    bad = HEALTHY | LASTING["Experts are dead"]
    assert not alerts.look(1, bad)
    assert not alerts.look(1, {"eval/zeroshot/top1": 0.1})
    assert [alert.title for alert in alerts.look(2, bad)] == ["Experts are dead"]


def test_null_switches_a_rule_off_and_every_rule_has_such_a_key():
    bad = {name: value for change in LASTING.values() for name, value in change.items()}
    skipped = [bad | {"train/skipped_steps": float(step)} for step in range(9)]
    keys = [key for key in vars(AlertsConfig()) if key != "records"]
    titles = {title for _, title in raised(skipped)}
    assert len(titles) == len(keys) == len(RULES)
    for key in keys:
        assert len({title for _, title in raised(skipped, **{key: None})}) == len(keys) - 1
    assert raised(skipped, **dict.fromkeys(keys, None)) == []


def test_titles_are_as_short_as_wandb_wants_them():
    assert all(len(rule.title) < 64 for rule in RULES)
