"""How much may be lost: in training as a share that grows with what is read, in evaluation of the one set there is."""

import pytest

from trainer.config.schema import DataConfig
from trainer.data.limits import LeftOut, check_bad_shards
from trainer.errors import UserError


@pytest.mark.parametrize(
    ("shards", "read", "bad", "limit"),
    [
        (8, 3, {"a": 1}, 0.05),  # one alone
        (8, 900, {"a": 112}, 0.05),  # even forever
        (100, 10, {"a": 1, "b": 1}, 0.05),  # of all, however few were read so far
        (100, 1000, {"a": 10, "b": 10, "c": 20}, 0.05),
        (4, 4, {"a": 1, "b": 1, "c": 1}, 1.0),
    ],
)
def test_a_few_bad_shards_are_let_pass(shards: int, read: int, bad: dict[str, int], limit: float) -> None:
    check_bad_shards(shards, read, bad, limit)


@pytest.mark.parametrize(
    ("shards", "read", "bad", "limit"),
    [
        (8, 4, {"a": 1, "b": 1}, 0.05),
        (8, 1, {"a": 1}, 0.0),
        (100, 20, dict.fromkeys("abcdef", 1), 0.05),
        (100, 1000, {"a": 25, "b": 26}, 0.05),
    ],
)
def test_too_many_bad_shards_end_the_run(shards: int, read: int, bad: dict[str, int], limit: float) -> None:
    with pytest.raises(UserError, match=rf"{len(bad)} of {shards} shards cannot be read .*data.max_bad_shards={limit:g}"):
        check_bad_shards(shards, read, bad, limit)


def left_out(read: int, bad: int, shards: int) -> LeftOut:
    found = LeftOut(read=read, bad_shards={f"{number}.tar": "gone" for number in range(shards)})
    for number in range(bad):
        found.note_bad("a.tar", f"a.tar/{number}", "no image")
    return found


@pytest.mark.parametrize(
    ("read", "bad", "shards", "limits"),
    [
        (1000, 10, 0, {}),
        (20, 1, 0, {}),
        (1000, 0, 1, {"max_bad_shards": 0.25}),
        (4, 3, 4, {"max_bad_share": 1, "max_bad_shards": 1}),
    ],
)
def test_an_evaluation_may_lose_little(read: int, bad: int, shards: int, limits: dict[str, float]) -> None:
    found = left_out(read, bad, shards)
    found.check(4, DataConfig(**limits))
    assert found.metrics() == {name: count for name, count in (("bad_samples", bad), ("bad_shards", shards)) if count}


@pytest.mark.parametrize(
    ("read", "bad", "shards", "told"),
    [
        (
            1000,
            11,
            0,
            r"11 of 1000 samples are unusable, most of them in a.tar \(11\); for example, a.tar/0: no image; more than data",
        ),
        (20, 2, 0, "2 of 20 samples are unusable"),
        (1000, 0, 1, "1 shard cannot be read to the end; for example, 0.tar: gone; more than data.max_bad_shards=0.05 of 4"),
        (0, 0, 4, "4 shards cannot be read"),
    ],
)
def test_an_evaluation_of_another_set_is_no_result(read: int, bad: int, shards: int, told: str) -> None:
    with pytest.raises(UserError, match=f"evaluation: {told}"):
        left_out(read, bad, shards).check(4, DataConfig())


def test_counts_of_readers_add_up_and_a_shard_that_several_saw_is_one() -> None:
    total = left_out(10, 2, 1)
    total.add(left_out(7, 1, 1))
    assert (total.read, total.bad, set(total.bad_shards)) == (17, {"a.tar": 3}, {"0.tar"})
