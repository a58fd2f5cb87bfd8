"""What Hydra runs for `trainer.train`: one training in this process, whose exit code and errors stay ours."""

import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trainer.config.compose import to_config
from trainer.config.schema import Config
from trainer.launch.names import name_after_job, name_in_wandb

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's variable: if it is 1, its front end passes exceptions on instead of printing its own traceback."""


class App:
    """What Hydra runs: one training in this process. `-m` makes our launchers start this program again for each run."""

    __module__ = "trainer.train"  # where Hydra believes the application to be

    def __init__(self, run: Callable[[Config], object], flags: list[str]) -> None:
        """run: trains and raises SystemExit with its code; flags: the ones that say where the configuration is."""
        self._run = run
        self.flags = flags
        self.code = 0
        self.started = self.failed = 0  # runs of a sweep
        self.problem: Exception | None = None
        self.undo: Callable[[], None] | None = None  # removes what was written for a sweep that does not start

    def __call__(self, values: DictConfig) -> None:
        """Train. Keeps an exception, which Hydra would report in its own way, and the exit code for `run_app`."""
        os.environ.pop(FULL_ERROR, None)
        try:
            config = to_config(values)
            typed = as_typed(HydraConfig.get().overrides.task)
            name_after_job(config, typed)
            name_in_wandb(config, typed)
            self._run(config)
        except Exception as problem:
            self.problem = problem
        except SystemExit as ended:
            self.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)

    def sweep_code(self) -> int:
        """0 if no run of a sweep has failed; otherwise prints how many and returns 1."""
        if self.failed:
            print(f"error: {self.failed} of {self.started} runs failed, see above", file=sys.stderr, flush=True)
        return int(self.failed > 0)


def as_typed(overrides: Any) -> list[str]:
    """A list that Hydra keeps, without its ${…} resolved."""
    values = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(values, list)
    return [str(text) for text in values]
