"""Which rank reads and writes which tensor: each tensor once, and no rank much more than another."""

from collections.abc import Collection, Mapping


def deal(sizes: Mapping[str, int], experts: Collection[str], world: int, expert_parallel: int) -> dict[str, range]:
    """The ranks that read and write each tensor, by its name: one rank, or of experts one expert-parallel group, a piece each.

    sizes: elements that a rank has of each tensor, of experts its own; experts: the names of those that are spread over a group.
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
    """Which of the ranks that a tensor is dealt to has what this rank needs of it."""
    return dealt[rank % len(dealt)]


def largest_share(sizes: Mapping[str, int], dealt: Mapping[str, range], world: int) -> int:
    """Elements of the rank that was dealt the most."""
    return max(sum(sizes[name] for name in dealt if rank in dealt[name]) for rank in range(world))
