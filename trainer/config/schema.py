"""The whole configuration as typed values: names, types, defaults and meanings. What users change is in `conf/`.

Each field declares its meaning and its allowed values (model.option); `docs/configuration.md` is generated from them. Checks that
involve several fields are in `trainer.config.checks`.
"""

from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig, RouterConfig, kept_patches
from model.option import option


@dataclass
class DataConfig:
    """Where the pairs come from and how they are read."""

    kind: str = option(
        "webdataset",
        "webdataset: shards of your own; shapes, shapes_hard: an embedded data set, written at the first use",
        choices=("shapes", "shapes_hard", "webdataset"),
    )
    train: Any = option(
        None,
        "training shards: a pattern with {000..123}, a directory, a URL, pipe:COMMAND, or a list of these; or several sources by "
        "name, as in {cc12m:{shards:PATTERN,weight:2},coco:PATTERN}, whose keys are below",
        path=True,
    )
    val: Any = option(None, "evaluation shards: a pattern, a directory, a URL, pipe:COMMAND, or a list of these", path=True)
    caption_key: str | None = option(
        None,
        "the key of .json that holds the caption, or a list to draw one from; without a .json, the caption is read from .txt",
    )
    caption_lines: bool | None = option(
        None, "whether each line of a .txt is a separate caption; null: only next to CLIP_benchmark's nshards.txt"
    )
    tokenizer: str | None = option(
        None,
        "PATH.model of SentencePiece, PATH/tokenizer.json of Hugging Face, or clip; null: that of init_from, else one is trained "
        "on the training captions",
        path=True,
        filled=True,
    )
    tokenizer_captions: int = option(100_000, "the most captions to train the tokenizer on", at_least=1)
    workers: int = option(1, "loader processes per rank; 0: the training process itself reads", at_least=0)
    streams: int | None = option(
        None,
        "canonical streams, which fix the order of the data; null: chosen from the shards, and kept when resuming",
        at_least=1,
        hint="null chooses it automatically",
    )
    shuffle_buffer: int = option(2000, "samples in a stream's shuffle buffer", at_least=0, hint="0: no shuffling within shards")
    crop_scale: list[float] = option(
        [0.6, 1.0], "share of the image's area covered by a training crop", length=2, ascending=True, above=0, at_most=1
    )
    crop_ratio: list[float] = option(
        [0.75, 1.3333], "ratio of width to height of a training crop", length=2, ascending=True, above=0
    )
    flip: bool = option(False, "mirror half of the training images; wrong if captions say left and right")
    background: list[int] = option(
        [255, 255, 255],
        "red, green and blue shown through the transparent parts of an image",
        length=3,
        at_least=0,
        at_most=255,
        prepares_input=True,
    )
    mean: list[float] = option(
        [0.5, 0.5, 0.5],
        "mean of red, green and blue from 0 to 1, subtracted from the pixels",
        length=3,
        prepares_input=True,
    )
    std: list[float] = option(
        [0.5, 0.5, 0.5],
        "standard deviation of red, green and blue, which the pixels are divided by",
        length=3,
        above=0,
        prepares_input=True,
    )
    max_bad_share: float = option(
        0.01, "largest share of unusable samples; with more, the run or the evaluation ends", at_least=0, at_most=1
    )
    max_bad_shards: float = option(
        0.05,
        "largest share of shards that cannot be read to the end; with more, the run or the evaluation ends",
        at_least=0,
        at_most=1,
    )
    remote_timeout: float = option(60.0, "seconds without data after which a URL or pipe: command is tried again", above=0)
    remote_tries: int = option(
        6, "tries in a row without data, with waits that double from 1 s; at most 3 for a command", at_least=1
    )
    shard_cache: str | None = option(
        None, "folder on the node's own disk that keeps shards read from URLs; null: they are streamed", path=True, filled=True
    )
    shard_cache_gib: float = option(100.0, "GiB that data.shard_cache may take on each node", above=0)
    cache: str = option("~/.cache/limoe", "where the embedded data sets are written", path=True, filled=True)
    shapes_train: int = option(20_000, "training pairs of an embedded data set", at_least=16, hint="one pair per shard")
    shapes_val: int = option(512, "evaluation pairs of an embedded data set", at_least=4, hint="one pair per shard")
    shapes_seed: int = option(0, "seed of an embedded data set")


@dataclass
class ParallelConfig:
    """How the model is spread over the processes."""

    expert_parallel: int = option(1, "EP: ranks that share one set of experts", at_least=1)
    zero_stage: int = option(
        1,
        "what ZeRO shards: optimizer state (1), gradients too (2), weights too (3)",
        choices=(1, 2, 3),
        hint="DeepSpeed's stage 0 clips gradients incorrectly with experts",
    )
    timeout_minutes: float = option(10.0, "time limit of a collective; one that takes longer ends the run", above=0)
    lost_after_seconds: float = option(60.0, "a rank that has not been heard from for this long ends the run", above=0)


@dataclass
class TrainConfig:
    """How many steps, how many pairs at once, and in which precision."""

    steps: int = option(1000, "optimizer steps in total", at_least=1)
    batch_size: int = option(256, "GLOBAL number of pairs per optimizer step", at_least=1)
    accumulate: int = option(
        1,
        "pieces that a step's batch passes the model in, to need less memory; each passes twice if they are one batch",
        at_least=1,
    )
    negatives: str = option(
        "batch",
        "what a pair is contrasted with: the step's whole batch, or, cheaper with train.accumulate, its micro-batch alone",
        choices=("batch", "micro"),
    )
    loss_chunk: int | None = option(
        None,
        "rows of the contrastive loss's logits that a process computes at a time, to need less memory; null: a micro-batch's",
        at_least=1,
        hint="null: all of a micro-batch",
    )
    precision: str = option("bf16", "precision of activations and gradients", choices=("bf16", "fp32"))
    grad_dtype: str = option(
        "fp32",
        "precision in which gradients are summed over processes and micro-batches; bf16 sends half the bytes",
        choices=("fp32", "bf16"),
    )
    freeze: list[str] = option(
        [],
        "patterns for the names of parameters that are not trained, as in [patches.*,towers.0.*]",
        filled=True,
    )
    patch_dropout: float = option(
        0.0,
        "share of each image's patches, drawn anew in every step, that training does not see",
        at_least=0,
        below=1,
        hint="0.5 trains on half of the patches",
    )
    compile: bool = option(False, "torch.compile the blocks")
    activation_checkpointing: str = option(
        "none",
        "what the backward pass recomputes: none, blocks, or offload (blocks, with their inputs kept in CPU memory)",
        choices=("none", "blocks", "offload"),
    )
    max_nonfinite_steps: int = option(10, "non-finite steps in a row that end the run", at_least=1)
    ema: float | None = option(
        None,
        "decay per step of a moving average of the weights (0.9999 in long runs); null: no average",
        above=0,
        below=1,
        hint="for example 0.9999; null for no average",
    )
    profile: str | None = option(
        None, "FIRST:LAST: steps that torch.profiler records into the run directory, such as 100:105; null: none", filled=True
    )
    profile_ranks: list[int] = option([0], "ranks on which it does", at_least=0)

    @property
    def in_pieces(self) -> bool:
        """Whether the micro-batches are pieces of one contrastive batch, which pass the model twice (model.pieces)."""
        return self.accumulate > 1 and self.negatives == "batch"


@dataclass
class OptimConfig:
    """AdamW."""

    lr: float = option(1e-3, "peak learning rate", above=0)
    weight_decay: float = option(1e-5, "decoupled weight decay, for matrices only", at_least=0)
    beta1: float = option(0.9, "decay of the gradients' moving average", at_least=0, below=1)
    beta2: float = option(0.98, "decay of the squared gradients' moving average", at_least=0, below=1)
    eps: float = option(1e-8, "added to the square root of that average", at_least=0)
    lr_factors: Any = option(
        None,
        "factors on the learning rate of the parameters whose names fit a pattern, the first that does, as in "
        "{towers.0.blocks.*:0.1,*.router.*:3}",
        at_least=0,
    )
    layer_decay: float = option(
        1.0,
        "factor on the learning rate from each block to the one before it, and from the first to the embeddings",
        above=0,
        at_most=1,
    )
    clip_norm: float = option(1.0, "largest norm of the global gradient; 0 turns clipping off", at_least=0)


@dataclass
class ScheduleConfig:
    """How the learning rate rises and falls."""

    kind: str = option(
        "cosine",
        "cosine, or rsqrt (reciprocal square root with a linear cool-down)",
        choices=("cosine", "rsqrt"),
    )
    warmup_steps: int = option(100, "steps of linear warm-up to the peak", at_least=0)
    cooldown_steps: int = option(0, "steps of linear cool-down to zero at the end; rsqrt only", at_least=0)
    final_factor: float = option(0.0, "the share of the peak that cosine ends at", at_least=0)
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
    keep: int = option(2, "newest checkpoints to keep; older ones are deleted", at_least=1, hint="resuming needs the newest one")
    keep_every: int | None = option(
        None,
        "never delete checkpoints whose step is a multiple of this; null: delete all old ones",
        at_least=1,
        hint="null keeps none permanently",
    )
    best: str | None = option(None, "a metric such as eval/zeroshot/top1: its best checkpoint is kept too, as checkpoints/best")
    best_mode: str = option("max", "whether the largest or the smallest value of that metric is best", choices=("max", "min"))
    asynchronous: bool = option(
        True, "write while training continues; takes CPU memory for one copy of the state, shared by all ranks"
    )
    on_failure: str = option(
        "stop",
        "what to do if a checkpoint cannot be written: stop the run, or warn and continue until the next one",
        choices=("stop", "continue"),
    )
    timeout_minutes: float = option(30.0, "a checkpoint that takes longer to write counts as failed", above=0)


@dataclass
class EvalConfig:
    """What is evaluated during training."""

    every: int = option(1000, "steps between two evaluations, besides those at the start and the end; 0: only those", at_least=0)
    batch_size: int = option(256, "GLOBAL number of images or texts embedded at once", at_least=1)
    zeroshot: Any = option(None, "PATH of a classification set, or {name: PATH}", path=True)
    fewshot: Any = option(
        None,
        "PATH of labelled images with a training and a test part, {train: PATH, test: PATH}, or {name: one of these}",
        path=True,
    )
    suite: Any = option(
        None,
        "folders in CLIP_benchmark's layout, each evaluated as its files ask: one, a folder of several, a list, or {name: PATH}",
        path=True,
    )
    prompts: Any = option(
        None,
        "prompts of the classification sets: imagenet80, simple, the PATH of a file of them, or {name: one of these}; null: each "
        "set's own",
        path=True,
    )
    classes: Any = option(
        None,
        "class names of the classification sets: imagenet, the PATH of a file of them, or {name: one of these}; null: each "
        "set's own",
        path=True,
    )
    retrieval: Any = option(True, "true: on data.val; false: none; or the shards or folder to use", path=True)


@dataclass
class AlertsConfig:
    """When a run asks for attention, in the terminal and in Weights & Biases; null: never for this reason."""

    records: int = option(
        10,
        "records of the metrics in a row that make something last: as many bad ones begin, as many good ones end it",
        at_least=1,
    )
    success: float | None = option(
        0.5,
        "a smaller share of a modality's tokens that get a slot, for so many records after the warm-up",
        at_least=0,
        at_most=1,
    )
    dead_experts: int | None = option(
        1, "as many experts of all layers that hardly any token wants, for so many records after the warm-up", at_least=1
    )
    skipped_steps: int | None = option(1, "as many steps skipped since the record before", at_least=1)
    data_share: float | None = option(
        0.5, "a larger share of the step spent waiting for data, for so many records", above=0, at_most=1
    )
    straggler: float | None = option(
        0.2, "a rank that takes longer than the quickest by a larger share of the step, for so many records", above=0
    )


@dataclass
class LogConfig:
    """Where metrics and progress are shown."""

    every: int = option(10, "steps between two records of the metrics; 0: only the first and the last step", at_least=0)
    wandb: str = option(
        "auto",
        "Weights & Biases; auto: online when logged in and reachable, else offline",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str | None = option(None, "project in Weights & Biases; null: WANDB_PROJECT, else limoe", filled=True)
    entity: str | None = option(None, "team or user in Weights & Biases; null: WANDB_ENTITY, else the default of the login")
    name: str | None = option(
        None, "name in Weights & Biases; null: run.name if you gave it, else WANDB_NAME, else the default run.name"
    )
    group: str | None = option(
        None, "group of runs in Weights & Biases; null: WANDB_RUN_GROUP, else the sweep that the run belongs to, if any"
    )
    tags: list[str] = option([], "tags in Weights & Biases, such as [baseline,b16]; []: WANDB_TAGS", filled=True)
    notes: str | None = option(None, "notes in Weights & Biases, in any words; null: WANDB_NOTES")
    job_type: str | None = option(None, "job type in Weights & Biases; null: WANDB_JOB_TYPE, else train")
    system_metrics: str = option(
        "nodes",
        "GPUs, CPUs, memory, network and disks in Weights & Biases: of all nodes (offline: of the first), of the first, or none",
        choices=("nodes", "first", "none"),
    )
    artifacts: str = option(
        "none",
        "the checkpoint that becomes an artifact in Weights & Biases when the run ends or is stopped: a reference to its files",
        choices=("none", "last", "best"),
    )
    experts: bool = option(
        False, "record a curve for each expert too: its load, by layer and modality, as routing/layer03/expert05/load/text"
    )
    every_images: int | None = option(
        None,
        "steps between two sets of pictures of the experts (what each takes, what is lost without it), besides the one at the "
        "end; 0: only that; null: none",
        at_least=0,
    )
    image_samples: int = option(
        256, "images with captions that these pictures are made from, and images of each classification set", at_least=2
    )
    prediction_rows: int = option(16, "images in a table of predictions, of each set and evaluation; 0: no tables", at_least=0)
    report: bool = option(True, "write report.html, a page about the run, when it ends; needs the extra of that name")
    progress: str = option("auto", "auto: a bar on a terminal, lines elsewhere", choices=("auto", "bar", "lines", "none"))
    alerts: AlertsConfig = field(default_factory=AlertsConfig)


@dataclass
class RunConfig:
    """The run's name and place."""

    name: str = option("limoe", "name of the run in tables, in Weights & Biases and of its directory", filled=True)
    dir: str = option(
        "runs/${run.name}", "the run directory: everything is written here and resumed from here", path=True, filled=True
    )
    device: str = option("auto", "auto: CUDA if available", choices=("auto", "cpu", "cuda"))
    gpu_memory_gib: Any = option(
        None, "memory of the job's GPUs, for a dry run on a machine without them: GiB, or a name such as H100"
    )
    dry: bool = option(False, "check everything and describe the run, without starting it")


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
        "a run or checkpoint directory, an export (or hf://OWNER/NAME), or weights of a CLIP or SigLIP from elsewhere: start a "
        "new run with these weights (and tokenizer) only. Images, patches and texts may have other sizes, and experts start as "
        "copies of a dense model's MLPs (upcycling); a table says what was changed",
        path=True,
        filled=True,
    )
    init_blocks: list[int | None] = option(
        [],
        "the block of init_from that each block starts from, null for a new one, as in [0,1,2,3,null,null]; []: the one with its "
        "number",
        at_least=0,
    )
    upcycle_noise: float = option(
        0.0,
        "what tells an expert from the others at the start of upcycling: normal noise on its copy of each matrix, in standard "
        "deviations of the matrix",
        at_least=0,
        hint="0: exact copies, which the noise of the router tells apart in training",
    )
    resume: str = option(
        "auto",
        "auto: the newest complete checkpoint of the run directory; never; or a run or checkpoint directory",
        path=True,
        filled=True,
    )
    seed: int = option(0, "seed of the weights, the order of the data, crops and noise", at_least=0, at_most=2**32 - 1)

    @property
    def trained_patches(self) -> int:
        """Patches of an image that a training step sees: those that train.patch_dropout leaves."""
        return kept_patches(self.model.image_patches, self.train.patch_dropout)

    @property
    def trained_image_tokens(self) -> int:
        """Tokens of an image in a training step: these patches, and the class token if there is one."""
        return self.trained_patches + self.model.image_tokens - self.model.image_patches
