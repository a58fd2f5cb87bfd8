"""What a model is made of, as plain values. No tensors, no files."""

from dataclasses import dataclass, field


@dataclass
class AuxiliaryConfig:
    """Weights of the auxiliary losses; 0 switches one off (LIMoE paper, section 3.1; V-MoE, appendix A).

    The model's loss is `contrastive + scale * mean of the switched-on (weight * loss)`, averaged over expert layers.
    """

    scale: float = 0.04
    importance: float = 1.0
    load: float = 1.0
    z: float = 1.0
    local_image: float = 0.0
    local_text: float = 1.0
    global_image: float = 1.0
    global_text: float = 1.0
    # Thresholds of the global entropy: the share of the experts that a modality is pushed to use, tau = log(share * E).
    # The paper's ablation names about 20 (image) and 9 (text) of 32 experts; not certain for every model of theirs.
    image_share: float = 20 / 32
    text_share: float = 9 / 32


@dataclass
class RouterConfig:
    """How tokens find their experts."""

    top_k: int = 1
    # Slots of an expert's buffer: round_up(capacity_factor * top_k * tokens / experts), pads counted as tokens (static shapes).
    capacity_factor: float = 1.0
    # The same for evaluation; null drops nothing, so that an embedding does not depend on its batch.
    eval_capacity_factor: float | None = None
    # Who keeps a slot when a buffer overflows: "gate" (Batch Priority Routing) or "order" (first come, first served).
    priority: str = "gate"
    # Standard deviation of the training noise on the logits, in units of 1/E.
    noise: float = 1.0
    # Pairs that compete for the same buffers; null: all pairs of one process's micro-batch.
    group_size: int | None = None
    aux: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)


@dataclass
class ModelConfig:
    """The architecture. Everything that decides a tensor's shape is here."""

    name: str = "limoe_tiny"
    towers: int = 1  # 1: both modalities share one Transformer; 2: one each, as CLIP
    width: int = 128
    mlp: int = 512
    heads: int = 4
    layers: int = 4
    expert_layers: list[int] = field(default_factory=list)  # indices of the blocks whose MLP is a mixture; [] is dense
    experts: int = 8
    image_size: int = 32  # pixels a side
    patch: int = 4  # pixels a side
    text_length: int = 16  # tokens, the end-of-text token counted
    vocabulary: int = 2048  # SentencePiece tokens at most
    embedding: int = 128  # width of the shared embedding space
    initial_scale: float = 10.0  # logit scale, 1 / temperature

    @property
    def image_tokens(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2
