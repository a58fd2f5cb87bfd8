"""The whole configuration as typed values; `conf/` holds what a user changes, this holds names, types and defaults."""

from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig, RouterConfig


@dataclass
class DataConfig:
    """Where the pairs come from and how they are read."""

    kind: str = "webdataset"  # "webdataset": the user's shards; "shapes": the embedded data set, written on first use
    train: Any = None  # shard pattern with {000..123} ranges, a directory, a list of those, or pipe:COMMAND
    val: Any = None
    caption_key: str | None = (
        None  # read captions from this key of .json (a list: one drawn at random) where there is one; else .txt
    )
    caption_lines: bool | None = None  # each line of a .txt is a caption; null: only beside CLIP_benchmark's nshards.txt
    tokenizer: str | None = None  # PATH.model of SentencePiece; null: trained on the training captions
    tokenizer_captions: int = 100_000  # captions that the tokenizer is trained on, at most
    workers: int = 1  # loader processes a rank; 0: in the training process
    streams: int | None = None  # canonical streams that fix the order of the data; null: chosen from the shards
    shuffle_buffer: int = 2000  # samples a stream holds back to shuffle
    crop_scale: list[float] = field(default_factory=lambda: [0.6, 1.0])  # share of the image's area a training crop takes
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])  # width to height of a training crop
    flip: bool = False  # mirror half of the training images; wrong for captions that say left and right
    background: list[int] = field(default_factory=lambda: [255, 255, 255])  # RGB seen through what is transparent in an image
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    max_bad_share: float = 0.01  # of the samples read; more unusable ones end the run, or the evaluation
    max_bad_shards: float = 0.05  # of the shards; more that cannot be read whole end the run, or the evaluation
    remote_timeout: float = 60.0  # seconds without a byte after which a URL or pipe: command is tried again
    remote_tries: int = 6  # tries in a row without a byte, with doubling waits from 1 s; at most 3 for a command
    cache: str = "~/.cache/limoe"  # where the embedded data set is written
    shapes_train: int = 20_000  # pairs of the embedded data set
    shapes_val: int = 512
    shapes_seed: int = 0


@dataclass
class ParallelConfig:
    """How the model is spread over the processes."""

    expert_parallel: int = 1  # EP: ranks that share one set of experts
    zero_stage: int = 1  # 1, 2 or 3
    timeout_minutes: float = 10.0  # a collective that waits longer ends the run
    lost_after_seconds: float = 60.0  # a rank that is not heard from for so long ends the run


@dataclass
class TrainConfig:
    steps: int = 1000
    batch_size: int = 256  # GLOBAL number of pairs an optimizer step
    accumulate: int = 1  # micro-batches a step; each is its own contrastive batch
    precision: str = "bf16"  # "bf16" or "fp32"
    grad_dtype: str = (
        "fp32"  # gradients are added up, over processes and micro-batches, in "fp32", or "bf16" to send half the bytes
    )
    compile: bool = False  # torch.compile the blocks
    activation_checkpointing: str = "none"  # "none", "blocks", or "offload" (blocks, inputs kept in CPU memory)
    max_nonfinite_steps: int = 10  # non-finite steps in a row that end the run
    ema: float | None = None  # decay a step of a moving average of the weights (0.9999 in long runs); null: none is kept


@dataclass
class OptimConfig:
    lr: float = 1e-3
    weight_decay: float = 1e-5  # decoupled, on matrices only
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0  # of the global gradient; 0 switches clipping off


@dataclass
class ScheduleConfig:
    kind: str = "cosine"  # "cosine" or "rsqrt" (reciprocal square root with a linear cool-down)
    warmup_steps: int = 100
    cooldown_steps: int = 0  # rsqrt only
    final_factor: float = 0.0  # of the peak, where cosine ends
    timescale: int | None = None  # rsqrt only: lr falls as sqrt(timescale / step); null: warmup_steps


@dataclass
class CheckpointConfig:
    every_steps: int | None = 1000
    every_minutes: float | None = None
    keep: int = 2  # newest ones; older are deleted
    keep_every: int | None = None  # those of every so many steps are never deleted
    best: str | None = None  # a metric such as eval/zeroshot/top1: its best checkpoint is kept too, as checkpoints/best
    best_mode: str = "max"  # "max": the larger the better; "min"
    asynchronous: bool = True  # write while the training goes on; takes CPU memory for one copy of the state, over all ranks
    on_failure: str = "stop"  # when one cannot be written: "stop" ends the run, "continue" warns and tries again at the next
    timeout_minutes: float = 30.0  # one that takes longer counts as failed


@dataclass
class EvalConfig:
    every: int = 1000  # steps; always at the first and the last too
    batch_size: int = 256  # GLOBAL
    zeroshot: Any = None  # PATH of a classification set, or {name: PATH}
    retrieval: Any = True  # true: on data.val; false: none; or shards / a folder


@dataclass
class LogConfig:
    every: int = 10  # steps
    wandb: str = "auto"  # auto | online | offline | disabled
    project: str = "limoe"
    entity: str | None = None
    progress: str = "auto"  # "auto": a bar on a terminal, lines elsewhere; "bar", "lines" or "none"


@dataclass
class RunConfig:
    name: str = "limoe"
    dir: str = "runs/${run.name}"
    device: str = "auto"  # auto | cpu | cuda
    gpu_memory_gib: Any = None  # of a GPU of the job, for a dry run that sees none: a number, or a name such as H100
    dry: bool = False  # check everything, print what the run would be, and end before it starts


@dataclass
class Config:
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
    init_from: str | None = None  # a run or checkpoint directory: a new run starts with its weights (and tokenizer) alone
    resume: str = "auto"  # auto: the newest complete checkpoint of the run directory; never; or a run or checkpoint directory
    seed: int = 0
