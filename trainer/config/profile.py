"""What `train.profile` means."""

import re

from trainer.config.schema import TrainConfig
from trainer.errors import UserError


def profiled_steps(train: TrainConfig) -> range:
    """The steps to record, numbered from 1 as in the log; empty for none. Raises UserError for what is no range of steps."""
    if train.profile is None:
        return range(0)
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", train.profile)
    if not found:
        raise UserError(
            f"train.profile={train.profile}: write FIRST:LAST, such as train.profile=100:105 for the six steps from 100 to 105 "
            f'(in a YAML file in quotes: "100:105")'
        )
    first, last = map(int, found.groups())
    if not 1 <= first <= last:
        raise UserError(
            f"train.profile={train.profile}: steps are counted from 1, and the first must not come after the last: "
            f"use train.profile={max(1, min(first, last))}:{max(1, first, last)}"
        )
    if last > train.steps:
        fitting = f"use train.profile={min(first, train.steps)}:{train.steps}"
        raise UserError(f"train.profile={train.profile}, but the run ends at step {train.steps}: {fitting}, or raise train.steps")
    return range(first, last + 1)


def check_profile(train: TrainConfig, world: int) -> None:
    """Raise UserError for a range that is none, or for ranks that the run does not have."""
    steps = profiled_steps(train)
    beyond = [rank for rank in train.profile_ranks if rank >= world]
    if steps and beyond:
        raise UserError(
            f"train.profile_ranks names {beyond}, but the ranks of this run are 0 to {world - 1}: "
            f"use train.profile_ranks=[{','.join(str(rank) for rank in train.profile_ranks if rank < world) or 0}]"
        )
    if steps and not train.profile_ranks:
        raise UserError("train.profile_ranks is empty: name the ranks to profile, such as train.profile_ranks=[0]")
