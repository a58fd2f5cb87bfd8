"""What a process sends per step, and how much of it leaves a node, which depends on where the experts are."""

from dataclasses import dataclass

from model.count import count_parameters
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.estimate.memory import expert_slots, gradient_bytes, local_pairs, weight_bytes


@dataclass(frozen=True)
class Sent:
    """Bytes that a process sends in an optimizer step. tokens: by all-to-all; synchronised: gradients and weights, by ZeRO;

    embeddings: of the contrastive loss's pairs, and their gradients.
    """

    tokens: float
    synchronised: float
    embeddings: float


@dataclass(frozen=True)
class Leaving:
    """Bytes that leave each node in an optimizer step. tokens: by all-to-all; synchronised: gradients and weights, by ZeRO."""

    tokens: float
    synchronised: float


def estimate_sent(config: Config, world: int) -> Sent:
    """For each of `world` processes; collectives counted as rings."""
    leaving = estimate_leaving(config, world, local=1)  # what leaves a process leaves its node if it is alone there
    # Two vectors of a pair, float32: its embeddings, or with the sigmoid loss that of its text and the gradient there.
    rows = 2 * 4 * config.model.embedding * local_pairs(config, world) * config.train.accumulate
    # Gathered, and their gradients scattered; or once round.
    times = 2 * (world - 1) if config.model.loss == "softmax" else world if world > 1 else 0
    return Sent(
        tokens=leaving.tokens,
        synchronised=leaving.synchronised,
        embeddings=rows * times,
    )


def estimate_leaving(config: Config, world: int, local: int) -> Leaving:
    """For `world` processes, `local` of them on each node, by rank; collectives counted as rings.

    Raises UserError when expert-parallel groups would begin in the middle of a node and end in the middle of another.
    """
    ep = config.parallel.expert_parallel
    if world % local or max(ep, local) % min(ep, local):
        raise UserError(
            f"LOCAL_WORLD_SIZE={local} must divide the {world} processes, and must be a multiple or a divisor of "
            f"parallel.expert_parallel={ep}"
        )
    counts = count_parameters(config.model, config.router)
    nodes = world // local
    # A ring passes through a node once, however many of the node's ranks are on it: so the dense layers count once per node. So
    # do the experts of the node's ranks, which are all of the model's if a group fits into a node.
    dense, experts = counts.total - counts.experts, counts.experts * min(1.0, local / ep)
    copies = nodes if ep <= local else world // ep  # nodes that have the same experts
    once = dense * (1 - 1 / nodes) + experts * (1 - 1 / copies)
    away = max(0, ep - local) / ep  # of a rank's slots, those of experts on other nodes
    return Leaving(tokens=local * _exchanged(config, world) * away, synchronised=_bytes_around(config) * once)


def _exchanged(config: Config, world: int) -> float:
    """Bytes of the slots that a rank exchanges per step, including its own."""
    model, train, weight = config.model, config.train, weight_bytes(config)
    passes = 2 * _model_passes(config)  # there and back each time
    return (
        passes
        * len(model.expert_layers)
        * train.accumulate
        * model.routed_experts
        * expert_slots(config, world)
        * model.width
        * weight
    )


def _model_passes(config: Config) -> int:
    """How often a micro-batch goes through the model, the backward pass included."""
    train = config.train
    return 2 + (train.activation_checkpointing != "none") + train.in_pieces


def _bytes_around(config: Config) -> int:
    """Bytes exchanged per step for each parameter: of its gradient, and of itself."""
    accumulate, stage = config.train.accumulate, config.parallel.zero_stage
    gradient, weight = gradient_bytes(config), weight_bytes(config)
    if stage == 3:  # weights gathered for each pass, gradients scattered
        return accumulate * (gradient + weight * _model_passes(config))
    # Gradients reduced everywhere, which is twice a scatter (stage 2: after every micro-batch), and the new weights gathered.
    return 2 * gradient * (accumulate if stage == 2 else 1) + weight
