"""Which rank reads and writes which tensor: each tensor once, with about equal shares."""

from collections.abc import Collection, Mapping


def deal(sizes: Mapping[str, int], experts: Collection[str], world: int, expert_parallel: int) -> dict[str, range]:
    """The ranks that read and write each tensor, by name: one rank, or for experts the ranks of one EP group, a piece each.

    sizes: elements of each tensor on one rank (of experts, its own ones); experts: names of the tensors spread over a group.
    """
    load = [0] * world
    dealt = {}
    for name in sorted(sizes, key=lambda name: (name not in experts, -sizes[name], name)):  # experts, which are large, first
        count = expert_parallel if name in experts else 1
        start = min(range(0, world, count), key=lambda first: max(load[first : first + count]))
        dealt[name] = range(start, start + count)
        for rank in dealt[name]:
            load[rank] += sizes[name]
    return dealt


def source(dealt: range, rank: int) -> int:
    """Which of the ranks that a tensor is dealt to has the part that this rank needs."""
    return dealt[rank % len(dealt)]


def largest_share(sizes: Mapping[str, int], dealt: Mapping[str, range], world: int) -> int:
    """The sum of the sizes, of any kind, on the rank with the largest share."""
    return max(sum(sizes[name] for name in dealt if rank in dealt[name]) for rank in range(world))
