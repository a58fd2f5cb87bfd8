"""What a model is made of, as plain values. No tensors, no files."""

from dataclasses import dataclass, field, replace

from model.option import option

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
TRIMMED = "trimmed"
"""The entry of the `model` section that an export has if parts of its model were left out (model.trim.Trim).

It is in that section, and no field of ModelConfig, so that whoever knows nothing of it refuses it by its name.
"""


@dataclass
class AuxiliaryConfig:
    """Weights of the auxiliary losses; 0 turns a loss off (LIMoE paper, section 3.1; V-MoE, appendix A).

    The model's loss is `contrastive + scale * mean of the active (weight * loss)`, averaged over expert layers.
    """

    scale: float = option(0.04, "factor on the mean of all auxiliary losses")
    importance: float = option(1.0, "weight of the importance loss: experts get the same sum of gates")
    load: float = option(1.0, "weight of the load loss: experts get the same number of tokens")
    z: float = option(1.0, "weight of the z-loss: router logits stay small")
    local_image: float = option(0.0, "weight of the local entropy of images: each image token is sure of its expert")
    local_text: float = option(1.0, "weight of the local entropy of texts: each text token is sure of its expert")
    global_image: float = option(1.0, "weight of the global entropy of images: images use many experts")
    global_text: float = option(1.0, "weight of the global entropy of texts: texts use many experts")
    # Thresholds of the global entropy: the share of the experts that a modality is pushed to use, tau = log(share * E).
    # The paper's ablation names about 20 (image) and 9 (text) of 32 experts; not certain for every model of theirs.
    image_share: float = option(20 / 32, "share of the experts that images are pushed to use", above=0, at_most=1)
    text_share: float = option(9 / 32, "share of the experts that texts are pushed to use", above=0, at_most=1)


@dataclass
class BiasConfig:
    """A bias on each expert's gate that decides who is chosen, and never a gate's value: balance without an auxiliary loss.

    After each applied step it falls where an expert got more than its even share of the step's tokens, and rises where less.
    """

    kind: str = option(
        "none",
        "none; shared: one for each expert (loss-free balancing); modality: one for each expert and modality, so that the tokens "
        "of each modality are spread evenly by themselves",
        choices=("none", "shared", "modality"),
        identity=True,
    )
    update: str = option(
        "sign",
        "how much it moves: sign (by the rate, whatever the distance from the even share), or zscore (by the rate times the "
        "distance in standard deviations of the load)",
        choices=("sign", "zscore"),
    )
    rate: float = option(
        0.001, "how far it moves in a step, in units of a gate; 0 keeps it as it is", at_least=0, hint="0 keeps the bias as it is"
    )
    image_rate: float | None = option(None, "the rate for image tokens; null: router.bias.rate; kind=modality only", at_least=0)
    text_rate: float | None = option(None, "the rate for text tokens; null: router.bias.rate; kind=modality only", at_least=0)


@dataclass
class RouterConfig:
    """How tokens find their experts."""

    name: str = option("limoe", "the recipe's name in tables: that of its file in conf/router")
    choice: str = option(
        "token",
        "who chooses: token (each token its top_k experts), or expert (each expert its best tokens, as many as it has slots: "
        "top_k * capacity_factor experts per token on average, and none for some tokens)",
        choices=("token", "expert"),
        identity=True,
    )
    gates: str = option(
        "softmax",
        "how logits become gates: softmax over the experts, or sigmoid of each logit",
        choices=("softmax", "sigmoid"),
        identity=True,
    )
    normalise_gates: bool = option(
        False,
        "divide the gates of the experts that take a token by their sum, so that they add up to 1; with one expert a token, the "
        "router then learns from the auxiliary losses alone",
        identity=True,
    )
    top_k: int = option(1, "experts per token, before model.expert_granularity multiplies them", at_least=1, identity=True)
    capacity_factor: float = option(
        1.0,
        "sets the slots in an expert's buffer: round_up(capacity_factor * top_k * tokens / experts); padding counts as tokens",
        above=0,
    )
    eval_capacity_factor: float | None = option(
        None,
        "the same for evaluation; null drops nothing, so that an embedding does not depend on its batch",
        above=0,
        hint="null drops nothing",
    )
    priority: str = option(
        "gate",
        "which tokens keep a slot when a buffer overflows: gate (Batch Priority Routing), token (the same, but all choices of a "
        "token are ranked by its largest gate, as in V-MoE; differs only for top_k above 1), or order (first come, first served)",
        choices=("gate", "token", "order"),
    )
    noise: float = option(
        1.0,
        "standard deviation of the training noise on the router logits, in units of 1/E; 0 turns it off",
        at_least=0,
        hint="0 turns the noise off",
    )
    group_size: int | None = option(
        None,
        "pairs that compete for the same buffers, at most those of one process's micro-batch; null: all of these",
        at_least=1,
        hint="null: all pairs of one process's micro-batch",
    )
    bias: BiasConfig = field(default_factory=BiasConfig)
    aux: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)

    def without_drops(self) -> "RouterConfig":
        """The same router, which in evaluation drops nothing, so that an embedding does not depend on its batch.

        With expert choice it never does, and experts without a capacity would take every token.
        """
        return replace(self, eval_capacity_factor=None) if self.choice == "token" else self


def kept_patches(patches: int, share: float) -> int:
    """How many of an image's patches stay when a share is dropped: the nearest number, at least one."""
    return max(1, round(patches * (1 - share)))


@dataclass
class ModelConfig:
    """The architecture: everything that determines a tensor's shape."""

    name: str = option("limoe_tiny", "the model's name in tables and messages")
    towers: int = option(
        1, "1: both modalities share one Transformer; 2: each has its own, as in CLIP", choices=(1, 2), identity=True
    )
    width: int = option(128, "width of a token", at_least=1, identity=True)
    mlp: int = option(512, "hidden width of an MLP and of an expert", at_least=1, identity=True)
    heads: int = option(4, "attention heads", at_least=1, identity=True)
    layers: int = option(4, "Transformer blocks per tower", at_least=1, identity=True)
    text_width: int | None = option(None, "width of a token in the texts' tower; null: model.width", at_least=1, identity=True)
    text_mlp: int | None = option(None, "hidden width of an MLP there; null: model.mlp", at_least=1, identity=True)
    text_heads: int | None = option(None, "attention heads there; null: model.heads", at_least=1, identity=True)
    text_layers: int | None = option(None, "Transformer blocks there; null: model.layers", at_least=1, identity=True)
    expert_layers: list[int] = option(
        [], "indices of the blocks whose MLP is a mixture of experts; [] is a dense model", at_least=0, identity=True
    )
    experts: int = option(8, "experts per expert layer", at_least=1, identity=True)
    expert_granularity: int = option(
        1,
        "c splits each expert into c finer ones: c times as many, each 1/c as wide, and c * router.top_k per token",
        at_least=1,
        identity=True,
    )
    shared_experts: int = option(
        0,
        "experts per expert layer, as wide as the others, that every token passes in addition to its routed ones",
        at_least=0,
        identity=True,
    )
    image_size: int = option(32, "side of an image, in pixels", at_least=1, identity=True)
    patch: int = option(4, "side of a patch in pixels; each patch is one token", at_least=1, identity=True)
    text_length: int = option(16, "most tokens per text, including the end-of-text token", at_least=1, identity=True)
    vocabulary: int = option(2048, "largest number of token ids, padding included", at_least=1, identity=True)
    embedding: int = option(128, "width of the embedding space shared by images and texts", at_least=1, identity=True)
    loss: str = option(
        "softmax",
        "the contrastive loss that the model is trained with: softmax over the batch (CLIP, LIMoE), or sigmoid of every pair by "
        "itself (SigLIP), with a learned bias of the logits",
        choices=("softmax", "sigmoid"),
        identity=True,
    )
    activation: str = option(
        "gelu",
        "what is between the two maps of an MLP: gelu, its approximation gelu_tanh, or quick_gelu (OpenAI's CLIP)",
        choices=ACTIVATIONS,
        identity=True,
    )
    text_activation: str | None = option(
        None, "the same in the texts' tower; null: model.activation", choices=ACTIVATIONS, identity=True
    )
    pool: str = option(
        "mean",
        "how tokens become one vector: mean (of all), token (a learned class token of an image, the last token of a text: CLIP), "
        "or attention (of a learned query, to an image's tokens; the last token of a text: SigLIP)",
        choices=("mean", "token", "attention"),
        identity=True,
    )
    text_mask: str = option(
        "pads",
        "which tokens of its text a token does not see: pads, causal (those that follow it: CLIP), or none (pads are tokens like "
        "others: SigLIP)",
        choices=("pads", "causal", "none"),
        identity=True,
    )
    image_norm: bool = option(False, "a LayerNorm of an image's tokens before the first block (CLIP)", identity=True)
    norm_eps: float = option(1e-5, "what a LayerNorm adds to the variance", above=0, identity=True)
    head_bias: bool = option(False, "a bias in the projections to the embedding (SigLIP)", identity=True)
    initial_scale: float = option(10.0, "logit scale (1 / temperature) at the start of training", above=0)
    initial_bias: float = option(-10.0, "bias of the logits at the start of training; only with model.loss=sigmoid")

    @property
    def routed_experts(self) -> int:
        """Experts of an expert layer that tokens are sent to."""
        return self.experts * self.expert_granularity

    @property
    def expert_width(self) -> int:
        """Hidden width of each of them."""
        return self.mlp // self.expert_granularity

    @property
    def image_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def image_tokens(self) -> int:
        """Tokens of one image: its patches and, behind them, the class token if there is one."""
        return self.image_patches + (self.pool == "token")

    @property
    def text_tower(self) -> "ModelConfig":
        """The same model with the sizes of the texts' tower in place of the images'; with one tower, they are the same."""
        return replace(
            self,
            width=self.text_width or self.width,
            mlp=self.text_mlp or self.mlp,
            heads=self.text_heads or self.heads,
            layers=self.text_layers or self.layers,
            activation=self.text_activation or self.activation,
        )
