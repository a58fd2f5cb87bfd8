"""A separate directory for each run: in a sweep named after what differs, in a job after the job's id."""

import os
import re
from collections import Counter
from collections.abc import Sequence

from trainer.config.schema import Config
from trainer.errors import UserError

LONGEST = 80
"""Most characters of a suffix; runs that would need more are numbered."""


def is_named(overrides: Sequence[str]) -> bool:
    """Whether the user has given a run's name or directory."""
    return any(override.lstrip("+").startswith(("run.name=", "run.dir=")) for override in overrides)


def name_after_job(config: Config, overrides: Sequence[str]) -> None:
    """Inside a job, add the job's id to a run without a name of its own: no other job shares it, and a requeue keeps it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or is_named(overrides) or config.run.dir != f"runs/{config.run.name}":
        return
    config.run.name += f"-{job}"
    config.run.dir = f"runs/{config.run.name}"


def name_in_wandb(config: Config, overrides: Sequence[str]) -> None:
    """Use a run.name that the user gave as the name in W&B too, regardless of WANDB_NAME."""
    if config.log.name is None and any(override.lstrip("+").startswith("run.name=") for override in overrides):
        config.log.name = config.run.name


def check_directories(configs: Sequence[Config]) -> None:
    """Raise UserError when two runs would write into the same directory, as with a fixed run.dir."""
    shared, times = Counter(config.run.dir for config in configs).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} runs of this sweep would share run.dir={shared}: leave run.dir out, "
            f"or include what differs in it, as in 'run.dir=/x/lr-${{optim.lr}}' (in single quotes)"
        )


def suffixes(own: Sequence[Sequence[str]], first: int = 0) -> list[str]:
    """A short text for each run from its own overrides: `lr-0.001`.

    If those would be equal or too long, the run's number in the sweep, where the first of these runs has number `first`.
    """
    leaves = Counter(_leaf(override) for override in own[0])
    texts = ["-".join(_readable(override, leaves) for override in run) for run in own]
    if len(set(texts)) < len(texts) or max(map(len, texts)) > LONGEST:
        return [str(number) for number in range(first, first + len(own))]
    return texts


def _readable(override: str, leaves: Counter[str]) -> str:
    """`optim.lr=0.001` as `lr-0.001`, or with the key's full name if another key ends the same way; safe for any file system."""
    key, _, value = override.lstrip("+").partition("=")
    name = _leaf(override) if leaves[_leaf(override)] == 1 else key
    return "-".join(part for part in (_plain(name), _plain(value)) if part)


def _leaf(override: str) -> str:
    return override.lstrip("+").partition("=")[0].rpartition(".")[2]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def text_override(key: str, text: str) -> str:
    """`key=text` as Hydra reads it, whatever the text contains."""
    if re.fullmatch(r"[A-Za-z0-9._/-]+", text):
        return f"{key}={text}"
    escaped = text.replace('"', '\\"')
    return f'{key}="{escaped}"'
