"""Seconds a step under several layouts, as one task of an srun: `srun … python -m tests.cluster.measure 2/1,8/1 [overrides]`.

The layouts are EP/ZeRO; batches are random, so that nothing but the step is measured. Rank 0 prints the median of a few steps.
"""

import statistics
import sys
import time

import torch

from tests.distributed.setups import TinyRun
from trainer.config.checks import check_layout
from trainer.config.compose import compose_config
from trainer.distributed.processes import start_processes, stop_processes

WARM_UP, MEASURED = 1, 3


def main() -> None:
    """Print `EP stage: seconds (fastest to slowest)`, a line a layout."""
    processes = start_processes("cpu", timeout_minutes=5)
    torch.set_num_threads(1)
    for layout in sys.argv[1].split(","):
        ep, stage = layout.split("/")
        config = compose_config([*sys.argv[2:], f"parallel.expert_parallel={ep}", f"parallel.zero_stage={stage}"])
        check_layout(config, processes.world)
        run = TinyRun(config, processes)
        seconds = []
        for _ in range(WARM_UP + MEASURED):
            processes.barrier()
            started = time.perf_counter()
            run.step()
            processes.barrier()
            seconds.append(time.perf_counter() - started)
        seconds = sorted(seconds[WARM_UP:])
        if processes.is_first:
            print(f"EP {ep} ZeRO-{stage}: {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})", flush=True)
    stop_processes()


if __name__ == "__main__":
    main()
