"""What a process sends per step, and how much of it leaves a node, which depends on where the experts are."""

from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.estimate.memory import blocks_with_backward, count, expert_slots, gradient_bytes, local_pairs, weight_bytes


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
    ep, stage = config.parallel.expert_parallel, config.parallel.zero_stage
    if world % local or max(ep, local) % min(ep, local):
        raise UserError(
            f"LOCAL_WORLD_SIZE={local} must divide the {world} processes, and must be a multiple or a divisor of "
            f"parallel.expert_parallel={ep}"
        )
    counts = count(config)
    nodes = world // local
    # A ring passes through a node once, however many of the node's ranks are on it: so the dense layers count once per node. So
    # do the experts of the node's ranks, which are all of the model's if a group fits into a node.
    copies = nodes if ep <= local else world // ep  # nodes that have the same experts

    def once(total: int, experts: int) -> float:
        own_experts = experts * min(1.0, local / ep)
        return (total - experts) * (1 - 1 / nodes) + own_experts * (1 - 1 / copies)

    away = max(0, ep - local) / ep  # of a rank's slots, those of experts on other nodes
    gradients = _gradient_bytes_around(config) * once(counts.trained, counts.trained_experts)
    weights = _weight_bytes_around(config) * (
        once(counts.total, counts.experts) if stage == 3 else once(counts.trained, counts.trained_experts)
    )
    return Leaving(tokens=local * _exchanged(config, world) * away, synchronised=gradients + weights)


def _exchanged(config: Config, world: int) -> float:
    """Bytes of the slots that a rank exchanges per step, including its own."""
    model, train, weight = config.model, config.train, weight_bytes(config)
    passed = set(blocks_with_backward(config)[0])
    forward = 1 + train.in_pieces
    passes = sum(_model_passes(config) if layer in passed else forward for layer in model.expert_layers)
    return (
        2  # there and back each time
        * passes
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


def _gradient_bytes_around(config: Config) -> int:
    """Bytes exchanged per step for the gradient of a trained parameter."""
    accumulate, stage, gradient = config.train.accumulate, config.parallel.zero_stage, gradient_bytes(config)
    if stage == 3:  # scattered
        return accumulate * gradient
    return 2 * gradient * (accumulate if stage == 2 else 1)  # reduced everywhere, which is twice that


def _weight_bytes_around(config: Config) -> int:
    """Bytes exchanged per step for a weight: for each pass in stage 3, else once, if it is trained and so has a new value."""
    passes = config.train.accumulate * _model_passes(config) if config.parallel.zero_stage == 3 else 1
    return passes * weight_bytes(config)
