"""A directory of its own for each run: of a sweep by what differs, in a job by the job's id."""

import os
import re
from collections import Counter
from pathlib import Path

from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.errors import UserError

LONGEST = 80
"""Characters of a suffix; runs that would need more are numbered."""


def is_named(overrides: list[str]) -> bool:
    """Whether the user says what a run is called or where it lies."""
    return any(override.lstrip("+").startswith(("run.name=", "run.dir=")) for override in overrides)


def name_after_job(config: Config, overrides: list[str]) -> None:
    """Inside a job, let a run that its user has not named carry the job's id: no other job shares it, and a requeue keeps it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or is_named(overrides) or config.run.dir != f"runs/{config.run.name}":
        return
    config.run.name += f"-{job}"
    config.run.dir = f"runs/{config.run.name}"


def name_in_wandb(config: Config, overrides: list[str]) -> None:
    """Let a run.name that was typed be the run's name in W&B too, whatever WANDB_NAME says."""
    if config.log.name is None and any(override.lstrip("+").startswith("run.name=") for override in overrides):
        config.log.name = config.run.name


def name_runs(runs: list[list[str]], home: Path | None = None) -> list[list[str]]:
    """The overrides of each run, with those that give it a directory no other has.

    Runs whose directories differ already keep them; else what differs is added to run.name: `limoe-lr-0.001`. `home`: the folder
    for runs whose user has given neither run.name nor run.dir. Raises UserError for a run that cannot be, or comes twice.
    """
    twice = [run for run, times in Counter(map(tuple, runs)).items() if times > 1]
    if twice:
        raise UserError(f"this sweep would train the same run twice: {' '.join(twice[0])}")
    at_home = home is not None and not is_named(runs[0])
    configs = [compose_config(run) for run in runs]
    if len({config.run.dir for config in configs}) == len(runs) and not at_home:
        return runs
    named_runs = []
    for run, config, suffix in zip(runs, configs, _suffixes(runs), strict=True):
        name = f"{config.run.name}-{suffix}" if suffix else config.run.name
        own = [_override("run.name", name)]
        if at_home:
            own.append(_override("run.dir", f"{home}/{name}"))
        named_runs.append([*run, *own])
    return named_runs


def check_directories(configs: list[Config]) -> None:
    """Raise UserError when two runs would write into the same directory, as they do when run.dir is one for all."""
    shared, times = Counter(config.run.dir for config in configs).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} runs of this sweep would share run.dir={shared}: leave run.dir out, "
            f"or let it tell what differs, as in 'run.dir=/x/lr-${{optim.lr}}' (in single quotes)"
        )


def differences(runs: list[list[str]]) -> list[list[str]]:
    """Of each run the overrides that are not the same in all."""
    varying = [place for place, values in enumerate(zip(*runs, strict=True)) if len(set(values)) > 1]
    return [[run[place] for place in varying] for run in runs]


def _suffixes(runs: list[list[str]]) -> list[str]:
    own = differences(runs)
    leaves = Counter(_leaf(override) for override in own[0])
    suffixes = ["-".join(_readable(override, leaves) for override in run) for run in own]
    if len(set(suffixes)) < len(suffixes) or max(map(len, suffixes)) > LONGEST:
        return [str(number) for number in range(len(runs))]
    return suffixes


def _readable(override: str, leaves: Counter[str]) -> str:
    """`optim.lr=0.001` as `lr-0.001`, or with its whole name where another key ends in the same; for any file system."""
    key, _, value = override.partition("=")
    name = _leaf(override) if leaves[_leaf(override)] == 1 else key
    return "-".join(part for part in (_plain(name), _plain(value)) if part)


def _leaf(override: str) -> str:
    return override.partition("=")[0].rpartition(".")[2]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def _override(key: str, text: str) -> str:
    """`key=text` as Hydra reads it, whatever the text holds."""
    if re.fullmatch(r"[A-Za-z0-9._/-]+", text):
        return f"{key}={text}"
    escaped = text.replace('"', '\\"')
    return f'{key}="{escaped}"'
