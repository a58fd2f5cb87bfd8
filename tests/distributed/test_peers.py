"""What crosses processes inside a forward pass, and its gradients, against one process; float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model.contrastive import contrastive_loss
from model.peers import Peers, SingleProcess
from tests.distributed.setups import rows_of
from tests.distributed.spawn import run_distributed
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.engine.build import start_deepspeed

EXPERTS, SLOTS, WIDTH = 8, 3, 5
LOSSES = [("softmax", None), ("softmax", 2), ("sigmoid", None), ("sigmoid", 2)]
"""Kinds, and rows of logits at a time."""

pytestmark = pytest.mark.slow


def normal(seed: int, *shape: int) -> Tensor:
    """Float64 normals, the same in every process."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs() -> tuple[Tensor, Tensor]:
    """Normalised image and text rows of a global batch."""
    images, texts = (torch.nn.functional.normalize(normal(seed, 12, WIDTH), dim=1) for seed in (1, 2))
    return images, texts


def loss_and_gradients(rows: Sequence[Tensor], kind: str, peers: Peers, chunk: int | None = None) -> list[Tensor]:
    """Of image and text rows, and of the scale and bias of the logits."""
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    inputs = [value.clone().requires_grad_() for value in (*rows, scale, *([bias] if kind == "sigmoid" else []))]
    images, texts, scale, *biases = inputs
    loss = contrastive_loss(images, texts, scale, biases[0] if biases else None, peers, chunk)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def of_each_loss(processes: Processes) -> list[list[Tensor]]:
    """This rank's results of every loss."""
    peers = DistributedPeers(processes, 1, None)
    rows = rows_of(processes.rank, processes.world, *pairs())
    return [loss_and_gradients(rows, kind, peers, chunk) for kind, chunk in LOSSES]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_contrastive_losses_and_their_gradients_are_those_of_one_process(world):
    ranks = run_distributed(of_each_loss, world)
    for number, (kind, _) in enumerate(LOSSES):
        losses, images, texts, *of_logits = zip(*(rank[number] for rank in ranks), strict=True)
        # The engine averages gradients over processes; the mean is the gradient of the global batch.
        actual = [torch.stack(losses).mean(), torch.cat(images) / world, torch.cat(texts) / world]
        actual += [torch.stack(values).mean() for values in of_logits]
        wanted = loss_and_gradients(pairs(), kind, SingleProcess())
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


def exchange(processes: Processes, expert_parallel: int) -> dict[str, Tensor]:
    """A buffer sent to the experts and back, what the experts saw, and the gradients of both ways."""
    peers = start_deepspeed(processes, expert_parallel)
    sent = normal(10 + processes.rank, EXPERTS, SLOTS, WIDTH).requires_grad_()
    seen = peers.to_experts(sent)
    # Each expert scales by its own factor, so that a row at the wrong expert, or a gradient that came astray, shows.
    owned = EXPERTS // expert_parallel
    factor = 1.0 + torch.arange(EXPERTS, dtype=torch.float64)[peers.expert_rank * owned :][:owned]
    back = peers.from_experts(seen * factor.view(-1, 1, 1))
    weight = normal(20 + processes.rank, EXPERTS, SLOTS, WIDTH)
    (grad,) = torch.autograd.grad((back * weight).sum(), sent)
    return {"sent": sent.detach(), "seen": seen.detach(), "back": back.detach(), "weight": weight, "grad": grad}


@pytest.mark.parametrize(("world", "expert_parallel"), [(2, 1), (2, 2), (4, 2), (4, 4)])
def test_slots_reach_the_owner_of_their_expert_and_come_back(world, expert_parallel):
    ranks = run_distributed(exchange, world, expert_parallel)
    every = 1.0 + torch.arange(EXPERTS, dtype=torch.float64).view(-1, 1, 1)
    owned = EXPERTS // expert_parallel
    for rank, got in enumerate(ranks):
        assert torch.equal(got["back"], got["sent"] * every)
        assert torch.equal(got["grad"], got["weight"] * every)
        first = rank - rank % expert_parallel
        mine = slice(rank % expert_parallel * owned, (rank % expert_parallel + 1) * owned)
        senders = ranks[first : first + expert_parallel]
        assert torch.equal(got["seen"], torch.cat([sender["sent"][mine] for sender in senders], dim=1))


def sums(processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of each rank's values, the gradient of a loss that every rank weights otherwise, and the group's maximum."""
    peers = start_deepspeed(processes, 2)
    values = normal(30 + processes.rank, WIDTH).requires_grad_()
    total = peers.sum(values)
    (grad,) = torch.autograd.grad((total.square() * (1 + processes.rank)).sum(), values)
    return total.detach(), grad, peers.max_over_experts(torch.tensor(10 * processes.rank))


def test_sums_and_their_gradients_are_over_all_ranks():
    ranks = run_distributed(sums, 4)
    total = sum(normal(30 + rank, WIDTH) for rank in range(4))
    for rank, (got, grad, largest) in enumerate(ranks):
        torch.testing.assert_close(got, total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, 2 * total * (1 + 2 + 3 + 4), rtol=1e-12, atol=1e-12)
        assert largest.item() == 10 * (rank - rank % 2 + 1)  # of the expert-parallel group only
