"""One task of an srun that trains a tiny model under several layouts: `srun … python -m tests.cluster.layouts OUT`."""

import json
import socket
import sys
from pathlib import Path

import torch

from tests.distributed.setups import Layout, TinyRun, tiny
from trainer.distributed.processes import start_processes, stop_processes

STEPS = 3
NODES, TASKS = 4, 2
WORLD = NODES * TASKS
LAYOUTS = [
    Layout(WORLD, 2, 1),  # each group inside a node
    Layout(WORLD, 4, 2),  # over two nodes
    Layout(WORLD, 8, 3),  # over all
]


def main() -> None:
    """Rank 0 writes hosts by rank, and (loss, norm) by step for each layout."""
    processes = start_processes("cpu", timeout_minutes=2)
    torch.set_num_threads(1)
    hosts = processes.gather_objects(socket.gethostname())
    losses = {}
    for layout in LAYOUTS:
        run = TinyRun(tiny(layout), processes)
        losses[str(layout)] = [run.step() for _ in range(STEPS)]
    if processes.is_first:
        Path(sys.argv[1]).write_text(json.dumps({"hosts": hosts, "losses": losses}))
    processes.barrier()
    stop_processes()


if __name__ == "__main__":
    main()
