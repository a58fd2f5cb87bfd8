"""The whole configuration as typed values; `conf/` holds what a user changes, this holds names, types, defaults and meanings.

Each field says beside itself what it means and may be (model.option); `docs/configuration.md` is made from that. What depends on
several fields is checked in `trainer.config.checks`.
"""

from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig, RouterConfig
from model.option import option


@dataclass
class DataConfig:
    """Where the pairs come from and how they are read."""

    kind: str = option(
        "webdataset",
        "webdataset: shards of your own; shapes: the embedded data set, written at the first use",
        choices=("shapes", "webdataset"),
    )
    train: Any = option(
        None,
        "training shards: a pattern with {000..123}, a directory, a list of those, or pipe:COMMAND",
        path=True,
    )
    val: Any = option(None, "evaluation shards, in the same forms", path=True)
    caption_key: str | None = option(
        None, "captions are read from this key of .json (of a list, one is drawn at random) where there is one; else from .txt"
    )
    caption_lines: bool | None = option(
        None, "each line of a .txt is a caption of its own; null: only beside CLIP_benchmark's nshards.txt"
    )
    tokenizer: str | None = option(
        None, "PATH.model of SentencePiece; null: one is trained on the training captions", path=True, filled=True
    )
    tokenizer_captions: int = option(100_000, "captions that the tokenizer is trained on, at most", at_least=1)
    workers: int = option(1, "loader processes a rank; 0: the training process reads itself", at_least=0)
    streams: int | None = option(
        None,
        "canonical streams that fix the order of the data; null: chosen from the shards, and kept by a resume",
        at_least=1,
        hint="null has it chosen",
    )
    shuffle_buffer: int = option(
        2000, "samples that a stream holds back to shuffle", at_least=0, hint="0: no shuffling within shards"
    )
    crop_scale: list[float] = option(
        [0.6, 1.0], "share of the image's area that a training crop takes", length=2, ascending=True, above=0, at_most=1
    )
    crop_ratio: list[float] = option([0.75, 1.3333], "width to height of a training crop", length=2, ascending=True, above=0)
    flip: bool = option(False, "mirror half of the training images; wrong for captions that say left and right")
    background: list[int] = option(
        [255, 255, 255],
        "red, green and blue that are seen through what is transparent in an image",
        length=3,
        at_least=0,
        at_most=255,
        prepares_input=True,
    )
    mean: list[float] = option(
        [0.5, 0.5, 0.5], "of red, green and blue, values from 0 to 1: subtracted from the pixels", length=3, prepares_input=True
    )
    std: list[float] = option(
        [0.5, 0.5, 0.5], "of red, green and blue: the pixels are divided by it", length=3, above=0, prepares_input=True
    )
    max_bad_share: float = option(
        0.01, "share of the samples read; when more are unusable, the run or the evaluation ends", at_least=0, at_most=1
    )
    max_bad_shards: float = option(
        0.05, "share of the shards; when more cannot be read whole, the run or the evaluation ends", at_least=0, at_most=1
    )
    remote_timeout: float = option(60.0, "seconds without a byte after which a URL or pipe: command is tried again", above=0)
    remote_tries: int = option(
        6, "tries in a row without a byte, with doubling waits from 1 s; at most 3 for a command", at_least=1
    )
    cache: str = option("~/.cache/limoe", "where the embedded data set is written", path=True, filled=True)
    shapes_train: int = option(20_000, "training pairs of the embedded data set", at_least=16, hint="one pair a shard")
    shapes_val: int = option(512, "evaluation pairs of the embedded data set", at_least=4, hint="one pair a shard")
    shapes_seed: int = option(0, "seed of the embedded data set")


@dataclass
class ParallelConfig:
    """How the model is spread over the processes."""

    expert_parallel: int = option(1, "EP: ranks that share one set of experts", at_least=1)
    zero_stage: int = option(
        1,
        "what ZeRO shards: optimizer state (1), gradients too (2), weights too (3)",
        choices=(1, 2, 3),
        hint="DeepSpeed's stage 0 clips gradients wrongly when there are experts",
    )
    timeout_minutes: float = option(10.0, "a collective that waits longer ends the run", above=0)
    lost_after_seconds: float = option(60.0, "a rank that is not heard from for so long ends the run", above=0)


@dataclass
class TrainConfig:
    """How long, how much at once, and in which precision."""

    steps: int = option(1000, "optimizer steps of the whole run", at_least=1)
    batch_size: int = option(256, "GLOBAL number of pairs of an optimizer step", at_least=1)
    accumulate: int = option(1, "micro-batches of a step; each is its own contrastive batch", at_least=1)
    precision: str = option("bf16", "what activations and gradients are computed in", choices=("bf16", "fp32"))
    grad_dtype: str = option(
        "fp32",
        "what gradients are added up in, over processes and micro-batches; bf16 sends half the bytes",
        choices=("fp32", "bf16"),
    )
    compile: bool = option(False, "torch.compile the blocks")
    activation_checkpointing: str = option(
        "none",
        "what is computed again in the backward pass: none, blocks, or offload (blocks, whose inputs are kept in CPU memory)",
        choices=("none", "blocks", "offload"),
    )
    max_nonfinite_steps: int = option(10, "non-finite steps in a row that end the run", at_least=1)
    ema: float | None = option(
        None,
        "decay a step of a moving average of the weights (0.9999 in long runs); null: none is kept",
        above=0,
        below=1,
        hint="such as 0.9999; null keeps no average",
    )


@dataclass
class OptimConfig:
    """AdamW."""

    lr: float = option(1e-3, "peak of the learning rate", above=0)
    weight_decay: float = option(1e-5, "decoupled, on matrices only", at_least=0)
    beta1: float = option(0.9, "decay of the mean of the gradients", at_least=0, below=1)
    beta2: float = option(0.98, "decay of the mean of their squares", at_least=0, below=1)
    eps: float = option(1e-8, "added to the root of that mean", at_least=0)
    clip_norm: float = option(1.0, "largest norm of the global gradient; 0 switches clipping off", at_least=0)


@dataclass
class ScheduleConfig:
    """How the learning rate rises and falls."""

    kind: str = option(
        "cosine",
        "cosine, or rsqrt (reciprocal square root with a linear cool-down)",
        choices=("cosine", "rsqrt"),
    )
    warmup_steps: int = option(100, "steps of the linear rise to the peak", at_least=0)
    cooldown_steps: int = option(0, "steps of the linear fall to zero at the end; rsqrt only", at_least=0)
    final_factor: float = option(0.0, "share of the peak at which cosine ends", at_least=0)
    timescale: int | None = option(
        None,
        "the rate falls as sqrt(timescale / step); null: warmup_steps; rsqrt only",
        at_least=1,
        hint="null: schedule.warmup_steps",
    )


@dataclass
class CheckpointConfig:
    """When the state is saved, and what is kept."""

    every_steps: int | None = option(1000, "steps between two checkpoints; 0 or null: only at the end", at_least=0)
    every_minutes: float | None = option(None, "minutes between two checkpoints; 0 or null: not by the clock", at_least=0)
    keep: int = option(2, "newest ones that are kept; older ones are deleted", at_least=1, hint="a resume needs the newest")
    keep_every: int | None = option(
        None,
        "those of every so many steps are never deleted; null: all are, when their time comes",
        at_least=1,
        hint="null keeps none for ever",
    )
    best: str | None = option(None, "a metric such as eval/zeroshot/top1: its best checkpoint is kept too, as checkpoints/best")
    best_mode: str = option("max", "which value of that metric is best: the largest, or the smallest", choices=("max", "min"))
    asynchronous: bool = option(
        True, "write while the training goes on; takes CPU memory for one copy of the state, over all ranks"
    )
    on_failure: str = option(
        "stop",
        "when one cannot be written: stop ends the run, continue warns and tries again at the next",
        choices=("stop", "continue"),
    )
    timeout_minutes: float = option(30.0, "one that takes longer counts as failed", above=0)


@dataclass
class EvalConfig:
    """What is measured during the training."""

    every: int = option(1000, "steps between two evaluations, beside those at the first and the last; 0: those alone", at_least=0)
    batch_size: int = option(256, "GLOBAL number of images or texts that are embedded at once", at_least=1)
    zeroshot: Any = option(None, "PATH of a classification set, or {name: PATH}", path=True)
    retrieval: Any = option(True, "true: on data.val; false: none; or shards, or a folder", path=True)


@dataclass
class LogConfig:
    """Where metrics and progress are shown."""

    every: int = option(10, "steps between two records of the metrics; 0: at the first step and the end alone", at_least=0)
    wandb: str = option(
        "auto",
        "Weights & Biases; auto: online when logged in and reachable, else offline",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str | None = option(None, "project of Weights & Biases; null: WANDB_PROJECT, else limoe", filled=True)
    entity: str | None = option(None, "team or user of Weights & Biases; null: WANDB_ENTITY, else the login's own")
    name: str | None = option(
        None, "of the run in Weights & Biases; null: run.name if that was typed, else WANDB_NAME, else run.name all the same"
    )
    progress: str = option("auto", "auto: a bar on a terminal, lines elsewhere", choices=("auto", "bar", "lines", "none"))


@dataclass
class RunConfig:
    """What the run is called, and where it is."""

    name: str = option("limoe", "name of the run, in tables, in Weights & Biases, and of its directory", filled=True)
    dir: str = option(
        "runs/${run.name}", "the run directory: where everything is written, and resumed from", path=True, filled=True
    )
    device: str = option("auto", "auto: CUDA where there is any", choices=("auto", "cpu", "cuda"))
    gpu_memory_gib: Any = option(
        None, "memory of a GPU of the job, for a dry run that sees none: a number of GiB, or a name such as H100"
    )
    dry: bool = option(False, "check everything, print what the run would be, and end before it starts")


@dataclass
class Config:
    """Every key of the configuration."""

    model: ModelConfig = field(default_factory=ModelConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)
    init_from: str | None = option(
        None,
        "a run or checkpoint directory: a new run starts with its weights (and tokenizer) alone",
        path=True,
        filled=True,
    )
    resume: str = option(
        "auto",
        "auto: the newest complete checkpoint of the run directory; never; or a run or checkpoint directory",
        path=True,
        filled=True,
    )
    seed: int = option(0, "of the weights, the order of the data, crops and noise", at_least=0, at_most=2**32 - 1)
