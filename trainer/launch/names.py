"""A directory of its own for each run: of a sweep by what differs, in a job by the job's id."""

import os
import re
from collections import Counter
from collections.abc import Sequence

from trainer.config.schema import Config
from trainer.errors import UserError

LONGEST = 80
"""Characters of a suffix; runs that would need more are numbered."""


def is_named(overrides: Sequence[str]) -> bool:
    """Whether the user says what a run is called or where it lies."""
    return any(override.lstrip("+").startswith(("run.name=", "run.dir=")) for override in overrides)


def name_after_job(config: Config, overrides: Sequence[str]) -> None:
    """Inside a job, let a run that its user has not named carry the job's id: no other job shares it, and a requeue keeps it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or is_named(overrides) or config.run.dir != f"runs/{config.run.name}":
        return
    config.run.name += f"-{job}"
    config.run.dir = f"runs/{config.run.name}"


def name_in_wandb(config: Config, overrides: Sequence[str]) -> None:
    """Let a run.name that was typed be the run's name in W&B too, whatever WANDB_NAME says."""
    if config.log.name is None and any(override.lstrip("+").startswith("run.name=") for override in overrides):
        config.log.name = config.run.name


def check_directories(configs: Sequence[Config]) -> None:
    """Raise UserError when two runs would write into the same directory, as they do when run.dir is one for all."""
    shared, times = Counter(config.run.dir for config in configs).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} runs of this sweep would share run.dir={shared}: leave run.dir out, "
            f"or let it tell what differs, as in 'run.dir=/x/lr-${{optim.lr}}' (in single quotes)"
        )


def suffixes(own: Sequence[Sequence[str]], first: int = 0) -> list[str]:
    """A short text for each run by the overrides that are its own: `lr-0.001`.

    Where those would be alike or too long it is the run's number in the sweep, in which the first of these runs has `first`.
    """
    leaves = Counter(_leaf(override) for override in own[0])
    texts = ["-".join(_readable(override, leaves) for override in run) for run in own]
    if len(set(texts)) < len(texts) or max(map(len, texts)) > LONGEST:
        return [str(number) for number in range(first, first + len(own))]
    return texts


def _readable(override: str, leaves: Counter[str]) -> str:
    """`optim.lr=0.001` as `lr-0.001`, or with its whole name where another key ends in the same; for any file system."""
    key, _, value = override.lstrip("+").partition("=")
    name = _leaf(override) if leaves[_leaf(override)] == 1 else key
    return "-".join(part for part in (_plain(name), _plain(value)) if part)


def _leaf(override: str) -> str:
    return override.lstrip("+").partition("=")[0].rpartition(".")[2]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def text_override(key: str, text: str) -> str:
    """`key=text` as Hydra reads it, whatever the text holds."""
    if re.fullmatch(r"[A-Za-z0-9._/-]+", text):
        return f"{key}={text}"
    escaped = text.replace('"', '\\"')
    return f'{key}="{escaped}"'
