"""What weights and epochs make of a run's pairs."""

from typing import Any

import pytest

from trainer.config.sources import SourceOptions
from trainer.data.order.mixture import Phase
from trainer.data.shares import Budget, asked_of, changes, other_epochs, work_out
from trainer.errors import UserError

SIZES: dict[str, int | None] = {"a": 1000, "b": 50, "c": 200}


def options(**sources: dict[str, Any]) -> list[SourceOptions]:
    return [
        SourceOptions(name, f"data.train.{name}", "/x", **({"weight": None} if "epochs" in keys else {}) | keys)
        for name, keys in sources.items()
    ]


@pytest.mark.parametrize(
    ("sources", "parts"),
    [
        ({"a": {}}, {"a": 1}),
        ({"a": {"weight": 2.0}, "b": {"weight": 1.0}}, {"a": 2, "b": 1}),
        ({"a": {"weight": 0.3}, "b": {"weight": 0.1}, "c": {"weight": 0.2}}, {"a": 3, "b": 1, "c": 2}),
        # 6400 pairs: 4 passes over b are 200 of them.
        ({"a": {}, "b": {"epochs": 4.0}}, {"a": 31, "b": 1}),
        ({"a": {"weight": 3.0}, "b": {"epochs": 4.0}, "c": {"weight": 1.0}}, {"a": 93, "b": 4, "c": 31}),
        ({"b": {"epochs": 4.0}, "c": {"epochs": 2.0}}, {"b": 1, "c": 2}),
    ],
)
def test_shares_are_what_was_asked_for(sources: dict[str, Any], parts: dict[str, int]) -> None:
    assert work_out(options(**sources), SIZES, {}, Budget(100, 64)) == parts


def test_epochs_that_leave_nothing_to_the_weights_are_refused_with_a_number_of_steps_that_works() -> None:
    asked = options(a={}, b={"epochs": 100.0}, c={"epochs": 8.0})
    with pytest.raises(
        UserError, match=r"the epochs of b, c take 6,600 pairs, but the run has 6,400: nothing .* for a"
    ) as caught:
        work_out(asked, SIZES, {}, Budget(100, 64))
    steps = int(str(caught.value).rpartition("train.steps=")[2].split()[0])
    assert work_out(asked, SIZES, {}, Budget(steps, 64))["a"] > 0
    with pytest.raises(UserError):
        work_out(asked, SIZES, {}, Budget(steps - 1, 64))


def test_passes_that_are_done_do_not_count_again() -> None:
    asked = options(a={}, b={"epochs": 4.0})
    assert work_out(asked, SIZES, {"a": 3100, "b": 100}, Budget(100, 64, 3200)) == {"a": 31, "b": 1}
    assert work_out(asked, SIZES, {"a": 3000, "b": 200}, Budget(100, 64, 3200)) == {"a": 1, "b": 0}
    assert work_out(asked, SIZES, {"a": 6200, "b": 200}, Budget(100, 64, 6400)) == {"a": 1, "b": 0}, "nothing is left to draw"
    both = options(b={"epochs": 4.0}, c={"epochs": 1.0})
    assert work_out(both, SIZES, {"b": 100, "c": 100}, Budget(100, 64, 200)) == {"b": 1, "c": 1}
    assert work_out(both, SIZES, {"b": 200, "c": 200}, Budget(100, 64, 400)) == {"b": 1, "c": 1}, "and so on"
    tiny = options(b={"epochs": 0.001}, c={"epochs": 0.001})
    assert work_out(tiny, SIZES, {}, Budget(100, 64)) == {"b": 1, "c": 4}, "less than a pair"


def test_epochs_of_unknown_length_ask_for_it() -> None:
    with pytest.raises(UserError, match=r"data\.train\.a\.epochs=2: .* is unknown; set data\.train\.a\.pairs, or weight"):
        work_out(options(a={"epochs": 2.0}), {"a": None}, {}, Budget(100, 64))


def test_epochs_that_do_not_fill_the_run_are_told_with_what_they_become() -> None:
    both = options(b={"epochs": 4.0}, c={"epochs": 1.0})
    assert other_epochs(both, SIZES, Budget(100, 4)) == ""
    assert other_epochs(both, SIZES, Budget(200, 4)) == (
        "the epochs of all sources take 400 pairs, and the run has 800: b 8 instead of 4, c 2 instead of 1; "
        "train.steps=100 would fit"
    )
    assert other_epochs(options(a={}, b={"epochs": 4.0}), SIZES, Budget(200, 4)) == ""


def test_shares_are_worked_out_again_only_if_something_else_is_asked_for() -> None:
    by_weight, by_epochs = options(a={}, b={"weight": 2.0}), options(a={}, b={"epochs": 2.0})
    assert asked_of(by_weight, Budget(100, 64)) == asked_of(by_weight, Budget(200, 64, 50))
    assert asked_of(by_epochs, Budget(100, 64)) == asked_of(by_epochs, Budget(100, 64, 50))
    assert asked_of(by_epochs, Budget(100, 64)) != asked_of(by_epochs, Budget(200, 64))
    assert asked_of([SourceOptions("", "data.train", "/x")], Budget(1, 1)) == {}


def test_changes_name_the_shares_that_differ() -> None:
    before, after = Phase(0, {"a": 2, "b": 1, "c": 1}), Phase(9, {"a": 1, "c": 1})
    assert changes(before, after) == "b 25.0% -> 0.0%, c 25.0% -> 50.0%"
    assert changes(before, Phase(9, {"a": 4, "b": 2, "c": 2})) == ""
