"""Which runs are seeds of one setting, and what they come to together."""

import statistics
from pathlib import Path

import pytest

from tests.trainer.report.made_runs import rising, write_run
from trainer.errors import UserError
from trainer.report.groups import Statistic, group_runs, short_names
from trainer.report.runs import RunRecord, read_runs
from trainer.report.tables import results_table, runs_table


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    """Two settings; three seeds of the one, a single run of the other."""
    for seed, top1 in enumerate((0.4, 0.5, 0.9)):
        write_run(tmp_path / f"gate-{seed}", rising(1.0, top1), seed=seed)
    write_run(tmp_path / "order-0", rising(0.5, 0.3), priority="order")
    return read_runs([tmp_path])


def test_runs_that_differ_in_their_seed_and_name_alone_are_one_setting(runs: list[RunRecord]):
    groups = group_runs(runs)
    assert [(group.setting, len(group.runs)) for group in groups] == [
        ({"router.priority": "gate"}, 3),
        ({"router.priority": "order"}, 1),
    ]
    assert [group.label() for group in groups] == ["priority=gate", "priority=order"]


def test_the_spread_is_the_sample_deviation_and_a_single_run_has_none(runs: list[RunRecord]):
    many, single = group_runs(runs)
    found = many.statistic("eval/zeroshot/top1", last_steps=4)
    assert found == Statistic(pytest.approx(0.6), pytest.approx(statistics.stdev([0.4, 0.5, 0.9])), 3)
    assert str(found) == "0.600 ± 0.265"
    assert str(single.statistic("eval/zeroshot/top1", last_steps=4)) == "0.300"
    assert single.statistic("train/loss", last_steps=4) is None


def test_the_name_of_a_router_stands_for_what_it_tells(tmp_path: Path):
    for router, load in (("classic", 1.0), ("none", 0.0)):
        for priority in ("order", "gate"):
            write_run(tmp_path / f"{router}-{priority}", rising(1.0, 0.5), router=router, load=load, priority=priority)
    groups = group_runs(read_runs([tmp_path]))
    assert [group.label() for group in groups] == [
        f"router={router}, priority={priority}" for router in ("classic", "none") for priority in ("gate", "order")
    ]


def test_a_name_alone_is_no_setting(tmp_path: Path):
    for router in ("mine", "yours"):
        write_run(tmp_path / router, rising(1.0, 0.5), router=router)
    assert [group.label() for group in group_runs(read_runs([tmp_path]))] == ["all"]


def test_the_keys_can_be_named_and_an_unknown_one_is_told(runs: list[RunRecord]):
    first, *_ = group_runs(runs, by=["router.priority", "router.aux.load"])
    assert first.setting == {
        "router.priority": "gate",
        "router.aux.load": 1.0,
    }
    with pytest.raises(UserError, match=r"by=router.priorty: no run has this key \(did you mean 'router.priority'\?\)"):
        group_runs(runs, by=["router.priorty"])


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["router.aux.load", "optim.lr", "data.lr"]) == ["load", "optim.lr", "data.lr"]
    assert short_names(["seed", "data.seed"]) == ["seed", "data.seed"]


def test_a_table_has_a_row_a_setting_and_says_how_many_runs_it_is_of(runs: list[RunRecord]):
    table = results_table(group_runs(runs), ["eval/zeroshot/top1", "routing/success/text"], last_steps=1)
    assert table.splitlines() == [
        "| priority | n | eval/zeroshot/top1 | routing/success/text |",
        "| --- | ---: | ---: | ---: |",
        "| gate | 3 | 0.600 ± 0.265 | 1.000 ± 0.000 |",
        "| order | 1 | 0.300 | 0.500 |",
    ]
    assert "| gate-2 | priority=gate | 2 | 4 |" in runs_table(group_runs(runs)).splitlines()
