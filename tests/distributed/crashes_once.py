"""The program, with one rank that dies at a step of its first start: `… -m tests.distributed.crashes_once HOW RANK [overrides]`.

HOW: "killed" or "fails". What torchrun restarts runs undisturbed.
"""

import os
import signal
import sys
from typing import Any

from trainer.train import main
from trainer.training.step import StepReport, Trainer

STEP = 5


def disturb(how: str, victim: int) -> None:
    """Have one rank die in this start."""
    kept = Trainer.step

    def step(trainer: Trainer, *given: Any) -> StepReport:
        if trainer.progress.step == STEP and trainer.processes.rank == victim:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise IndexError("a bug")
        return kept(trainer, *given)

    Trainer.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    how, victim = sys.argv[1:3]
    del sys.argv[1:3]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        disturb(how, int(victim))
    main()
