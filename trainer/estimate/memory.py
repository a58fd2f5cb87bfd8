"""What a configuration needs per process: memory by part; and on disk. For what is sent, see trainer.estimate.traffic."""

from dataclasses import dataclass

from model.count import ParameterCount, count_parameters, expert_parameters
from model.freeze import blocks_passed_back, freeze
from model.limoe import LIMoE
from model.routing import capacity
from trainer.config.schema import Config
from trainer.distributed.device import dtype_of
from trainer.distributed.shares import deal, largest_share

STATE_BYTES = 12
"""Bytes of a trained parameter in the optimizer and in a checkpoint: the float32 master and Adam's two moments."""
FROZEN_BYTES = 4
"""Bytes of a frozen one in a checkpoint, and in host memory until then: its float32 value."""
EMA_BYTES = 4
"""And of its float32 average, which train.ema keeps in both."""
MOST_BUCKET_ELEMENTS = 500_000_000
"""Most elements of the buffer through which gradients are reduced: DeepSpeed's default."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. activations is an estimate, for fused attention and without torch.compile; the rest is counted."""

    weights: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def state(self) -> float:
        """What does not depend on the batch size."""
        return self.weights + self.optimizer + self.gradients

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.activations


def bucket_elements(config: Config) -> int:
    """Elements of the buffer that gradients are reduced through: no more than a rank has of them."""
    counts = count(config)
    own_experts = counts.trained_experts // config.parallel.expert_parallel
    return min(MOST_BUCKET_ELEMENTS, counts.trained - counts.trained_experts + own_experts)


def count(config: Config) -> ParameterCount:
    """The numbers of parameters, trained and frozen."""
    return count_parameters(config.model, config.router, config.train.freeze)


def weight_bytes(config: Config) -> int:
    """Bytes of a weight as the forward pass uses it."""
    return dtype_of(config.train.precision).itemsize


def gradient_bytes(config: Config) -> int:
    """Bytes of a gradient as it is added up over processes and micro-batches."""
    return dtype_of(config.train.grad_dtype).itemsize


def local_pairs(config: Config, world: int) -> int:
    """Pairs of one process's micro-batch."""
    return max(1, config.train.batch_size // world // config.train.accumulate)


def trained_tokens(config: Config) -> int:
    """Tokens of a pair in training."""
    return config.trained_image_tokens + config.model.text_length


def contrasted_pairs(config: Config) -> int:
    """Pairs of one contrastive batch, over all processes."""
    train = config.train
    return train.batch_size if train.negatives == "batch" else train.batch_size // train.accumulate


def logit_rows(config: Config, world: int) -> int:
    """Rows of the contrastive loss's logits that a process computes at a time."""
    pairs = local_pairs(config, world)
    return min(config.train.loss_chunk or pairs, pairs)


def logit_columns(config: Config, world: int) -> int:
    """Pairs that these rows are compared with: those of all processes, or with the sigmoid loss of one after the other."""
    together = contrasted_pairs(config)
    return together if config.model.loss == "softmax" else max(1, together // world)


def expert_slots(config: Config, world: int) -> int:
    """Slots that one process fills for each expert of a layer; without routing groups, which round up once each."""
    model, router = config.model, config.router
    tokens = local_pairs(config, world) * trained_tokens(config)
    return capacity(tokens, model.routed_experts, top_k(config), router.capacity_factor)


def top_k(config: Config) -> int:
    """Experts of a layer that each token chooses."""
    return config.router.top_k * config.model.expert_granularity


def estimate_memory(config: Config, world: int) -> Memory:
    """Memory of each of `world` processes; CUDA's and NCCL's own (1 to 2 GiB) comes on top."""
    counts, ep, stage = count(config), config.parallel.expert_parallel, config.parallel.zero_stage
    weight, gradient = weight_bytes(config), gradient_bytes(config)
    whole = counts.total - counts.experts + counts.experts / ep
    trained = counts.trained - counts.trained_experts + counts.trained_experts / ep
    shard = counts.trained / world  # the experts of a rank are sharded over their world / ep copies
    return Memory(
        weights=weight * (whole if stage < 3 else counts.total / world),
        optimizer=_state_bytes(config) * shard,
        # Before the optimizer step, each shard is converted to float32.
        gradients=gradient * (trained if stage == 1 else shard) + 4 * shard + _bucket_bytes(config) * bucket_elements(config),
        activations=_activations(config, world),
    )


def _bucket_bytes(config: Config) -> int:
    """Bytes of an element of the buffer: stage 1 fills it with its sums.

    The others fill it with gradients as they come, and send a copy of another dtype.
    """
    weight, gradient = weight_bytes(config), gradient_bytes(config)
    if config.parallel.zero_stage == 1:
        return gradient
    return weight if weight == gradient else weight + gradient


def _activations(config: Config, world: int) -> float:
    """What the forward pass keeps for the backward pass, and the gradients of the block that the backward pass is in."""
    model, texts, weight = config.model, config.model.text_tower, weight_bytes(config)
    pairs = local_pairs(config, world)
    image_tokens, text_tokens = pairs * config.trained_image_tokens, pairs * model.text_length
    tokens = image_tokens + text_tokens
    of_images = weight * image_tokens * (9 * model.width + 2 * model.mlp)
    of_texts = weight * text_tokens * (9 * texts.width + 2 * texts.mlp)
    block = of_images + of_texts
    experts = weight * model.routed_experts * expert_slots(config, world) * (4 * model.width + 2 * model.expert_width)
    experts += weight * tokens * 2 * model.shared_experts * model.expert_width
    if config.router.choice == "expert":  # outputs come home to every token from every expert, empty or not
        experts += weight * tokens * model.routed_experts * model.width
    mixed = block - weight * tokens * 2 * model.mlp + experts
    largest = max(block, mixed) if model.expert_layers else block
    passed = blocks_with_backward(config)  # of one tower, or of each
    mixed_blocks = sum(index in model.expert_layers for index in passed[0])
    if config.train.activation_checkpointing == "none":
        dense = of_images * (len(passed[0]) - mixed_blocks) + of_texts * (len(passed[-1]) - mixed_blocks)
        kept = dense + mixed * mixed_blocks + largest
    else:
        # "offload" keeps them in host memory
        inputs = weight * (image_tokens * model.width * len(passed[0]) + text_tokens * texts.width * len(passed[-1]))
        kept = 2 * largest + (inputs if config.train.activation_checkpointing == "blocks" else 0)
    images = 3 * model.image_size**2 * pairs * (1 + weight)
    # The softmax loss in both directions: logits, their softmax and gradient; the sigmoid loss: logits, those of partners
    # turned, their log-likelihood and gradients. Float32.
    copies = 2 * 3 if model.loss == "softmax" else 4
    logits = copies * 4 * logit_rows(config, world) * logit_columns(config, world)
    # Of all pairs; of the sigmoid loss those that visit, and with them their gradients, as they come and as they go.
    embeddings = (2 if model.loss == "softmax" else 4) * 4 * model.embedding * logit_columns(config, world)
    if not config.train.in_pieces:
        # Softmax in chunks: all gradients, those of a chunk, and those that the backward pass hands on.
        in_chunks = model.loss == "softmax" and logit_rows(config, world) < pairs
        return kept + images + logits + (4 if in_chunks else 1) * embeddings
    # The logits are gone before the second pass begins; what the first one leaves stays, with gradients.
    return max(kept, logits) + images + 2 * embeddings + _left_by_pieces(config, world)


def blocks_with_backward(config: Config) -> list[list[int]]:
    """By tower, the blocks that the backward pass goes through: all, or those above what is frozen."""
    model = config.model
    if not config.train.freeze:
        return [list(range(sizes.layers)) for sizes in (model, model.text_tower)[: model.towers]]
    return blocks_passed_back(freeze(LIMoE.without_values(model, config.router), config.train.freeze))


def _left_by_pieces(config: Config, world: int) -> float:
    """What a process's pieces leave after their first pass: embeddings and their gradients, and how they were routed."""
    model, router = config.model, config.router
    pairs = config.train.accumulate * local_pairs(config, world)
    embeddings = 2 * 2 * 4 * model.embedding * pairs
    if not model.expert_layers:
        return embeddings
    slots = config.train.accumulate * model.routed_experts * expert_slots(config, world)
    choices = 0 if router.choice == "expert" else pairs * trained_tokens(config) * top_k(config)
    return embeddings + len(model.expert_layers) * (4 * slots + 2 * choices)  # the dtypes of model.routing.Decisions


@dataclass(frozen=True)
class HostMemory:
    """Bytes of a process's tensors in host memory when training is on a GPU.

    start: the model, before it goes to the device, and in a resume what the process reads of its weights; checkpoint: the copy
    that is written while training continues, on the rank with the largest share, of which frozen parameters always stay;
    pairs: those of a step in pieces, which wait for their second pass.
    """

    start: float
    checkpoint: float
    pairs: float


def estimate_host_memory(config: Config, world: int) -> HostMemory:
    """Of each of `world` processes."""
    ep = config.parallel.expert_parallel
    model = freeze(LIMoE.without_values(config.model, config.router), config.train.freeze)
    experts = {id(parameter) for parameter in expert_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in experts}
    sizes = {name: parameter.numel() // (ep if name in names else 1) for name, parameter in model.named_parameters()}
    dealt = deal(sizes, names, world, ep)
    each = {
        name: _state_bytes(config) if parameter.requires_grad else FROZEN_BYTES for name, parameter in model.named_parameters()
    }
    return HostMemory(
        start=4 * (sum(sizes.values()) + largest_share(sizes, dealt, world)),
        checkpoint=largest_share({name: each[name] * size for name, size in sizes.items()}, dealt, world),
        pairs=_pair_bytes(config) * config.train.accumulate * local_pairs(config, world) if config.train.in_pieces else 0,
    )


def _pair_bytes(config: Config) -> int:
    """A pair as the loader gives it: uint8 pixels and int64 tokens."""
    return 3 * config.model.image_size**2 + 8 * config.model.text_length


def checkpoint_bytes(config: Config) -> int:
    """A checkpoint's tensors; everything else in it is small."""
    counts = count(config)
    return _state_bytes(config) * counts.trained + FROZEN_BYTES * (counts.total - counts.trained)


def _state_bytes(config: Config) -> int:
    return STATE_BYTES + (EMA_BYTES if config.train.ema is not None else 0)


def readable_bytes(number: float) -> str:
    """Bytes with their unit: 5.6 GiB, 675 MiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f} {unit}"
    return f"{number:.0f} bytes"
