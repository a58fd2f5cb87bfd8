"""Each tensor is dealt to one rank, or of experts to one group, and evenly."""

import pytest

from trainer.distributed.shares import deal, largest_share, source

SIZES = {f"dense{n}": 10 * n for n in range(1, 13)} | {f"expert{n}": 300 for n in range(6)}
EXPERTS = {name for name in SIZES if name.startswith("expert")}


@pytest.mark.parametrize(("world", "expert_parallel"), [(1, 1), (2, 1), (2, 2), (6, 2), (8, 4), (64, 8)])
def test_every_tensor_is_dealt_once(world: int, expert_parallel: int):
    dealt = deal(SIZES, EXPERTS, world, expert_parallel)
    assert dealt.keys() == SIZES.keys()
    for name, ranks in dealt.items():
        assert len(ranks) == (expert_parallel if name in EXPERTS else 1)
        assert ranks[0] % len(ranks) == 0 and ranks[-1] < world
        assert {source(ranks, rank) for rank in range(world)} == set(ranks)
        if name in EXPERTS:  # a rank gets what is its own from one that has the same place in its group
            assert all(source(ranks, rank) % expert_parallel == rank % expert_parallel for rank in range(world))


@pytest.mark.parametrize(("world", "expert_parallel"), [(2, 1), (2, 2), (6, 2), (4, 4)])
def test_no_rank_has_much_more_than_its_share(world: int, expert_parallel: int):
    dealt = deal(SIZES, EXPERTS, world, expert_parallel)
    dense = sum(size for name, size in SIZES.items() if name not in EXPERTS)
    even = (dense + 6 * 300 * expert_parallel) / world
    assert even <= largest_share(SIZES, dealt, world) <= even + 300
