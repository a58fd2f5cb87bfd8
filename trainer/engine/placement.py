"""Who owns what: one row per rank, for the table at the start."""

import socket

import torch

from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.reporting.tables import LayoutRow


def layout_rows(config: Config, processes: Processes) -> list[LayoutRow]:
    """Who owns what, one row per rank, on every rank. A collective."""
    ep = config.parallel.expert_parallel
    owned = config.model.routed_experts // ep
    expert_rank = processes.rank % ep
    device = str(processes.device)
    if processes.device.type == "cuda":
        device += f" {torch.cuda.get_device_name(processes.device)}"
    experts = range(expert_rank * owned, (expert_rank + 1) * owned) if config.model.expert_layers else range(0)
    row = LayoutRow(rank=processes.rank, host=socket.gethostname(), device=device, ep_rank=expert_rank, experts=list(experts))
    return processes.gather_objects(row)
