"""Which configurations can run, and on how many processes: checks before anything is built."""

import math

from model.config import ModelConfig, RouterConfig
from model.routing import PRIORITIES
from trainer.config.schema import CheckpointConfig, Config, DataConfig, OptimConfig, ScheduleConfig, TrainConfig
from trainer.errors import Check, UserError, did_you_mean


def check_model(model: ModelConfig, router: RouterConfig) -> None:
    """Raise UserError for an architecture that cannot be built."""
    for name in ("width", "mlp", "heads", "layers", "image_size", "patch", "text_length", "vocabulary", "embedding"):
        if getattr(model, name) < 1:
            raise UserError(f"model.{name}={getattr(model, name)} must be at least 1")
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is not divisible by model.heads={model.heads}: change one of them")
    if model.image_size % model.patch:
        raise UserError(f"model.image_size={model.image_size} is not divisible by model.patch={model.patch}: change one of them")
    if model.towers not in (1, 2):
        raise UserError(f"model.towers={model.towers}: choose 1 (shared) or 2 (one a modality)")
    beyond = [layer for layer in model.expert_layers if not 0 <= layer < model.layers]
    if beyond:
        raise UserError(
            f"model.expert_layers names {beyond}, but the blocks are 0 to {model.layers - 1} (model.layers={model.layers})"
        )
    if len(set(model.expert_layers)) < len(model.expert_layers):
        raise UserError(f"model.expert_layers={list(model.expert_layers)} names a block twice")
    if model.towers == 2 and model.expert_layers:
        raise UserError("model.towers=2 is the dense baseline: set model.expert_layers=[], or model.towers=1 for experts")
    if model.expert_layers and not 1 <= router.top_k <= model.experts:
        raise UserError(f"router.top_k={router.top_k} must lie between 1 and model.experts={model.experts}")
    if router.priority not in PRIORITIES:
        raise UserError(f"router.priority={router.priority}: choose {' or '.join(PRIORITIES)}")
    if router.capacity_factor <= 0 or (router.eval_capacity_factor is not None and router.eval_capacity_factor <= 0):
        raise UserError(
            "router.capacity_factor and router.eval_capacity_factor must be above 0 (null for evaluation drops nothing)"
        )
    if router.noise < 0:
        raise UserError(f"router.noise={router.noise} must not be negative; 0 switches the noise off")
    if not 0 < router.aux.image_share <= 1 or not 0 < router.aux.text_share <= 1:
        raise UserError("router.aux.image_share and router.aux.text_share must lie above 0 and be at most 1")


def check_parallel(config: Config, world: int) -> None:
    """Raise UserError when the model cannot be spread over `world` processes as asked."""
    stage, ep = config.parallel.zero_stage, config.parallel.expert_parallel
    if stage not in (1, 2, 3):
        why = ": DeepSpeed's stage 0 clips gradients wrongly when there are experts" if stage == 0 else ""
        raise UserError(f"parallel.zero_stage={stage}: choose 1, 2 or 3{why}")
    if ep < 1:
        raise UserError(f"parallel.expert_parallel={ep} must be at least 1")
    if world % ep:
        raise UserError(
            f"parallel.expert_parallel={ep} does not divide the {count_processes(world)} of this run: start a multiple of {ep} "
            f"(torchrun --nproc-per-node {ep}), or set parallel.expert_parallel={math.gcd(world, ep)}"
        )
    if not config.model.expert_layers and ep > 1:
        raise UserError(
            f"parallel.expert_parallel={ep}, but model {config.model.name} has no expert layers: use parallel.expert_parallel=1"
        )
    if config.model.expert_layers and config.model.experts % ep:
        raise UserError(
            f"model.experts={config.model.experts} is not divisible by parallel.expert_parallel={ep}: "
            f"each rank must own as many experts as any other"
        )
    if config.parallel.timeout_minutes <= 0:
        raise UserError(f"parallel.timeout_minutes={config.parallel.timeout_minutes} must be above 0")
    if not config.parallel.lost_after_seconds > 0:
        raise UserError(f"parallel.lost_after_seconds={config.parallel.lost_after_seconds} must be above 0")


def check_layout(config: Config, world: int) -> None:
    """Raise UserError when the configuration does not fit `world` processes."""
    for check in layout_checks(config, world):
        check()


def layout_checks(config: Config, world: int) -> list[Check]:
    """The parts of `check_layout`; none needs another to have passed."""
    return [
        lambda: check_model(config.model, config.router),
        lambda: check_parallel(config, world),
        lambda: _check_precision(config),
        lambda: _check_colours(config.data),
        lambda: _check_training(config.train),
        lambda: _check_optimizer(config.optim),
        lambda: _check_training_batch(config, world),
        lambda: _check_evaluation_batch(config, world),
        lambda: _check_rest(config),
    ]


def _check_training(train: TrainConfig) -> None:
    if train.activation_checkpointing not in ("none", "blocks", "offload"):
        raise UserError(f"train.activation_checkpointing={train.activation_checkpointing}: choose none, blocks or offload")
    if train.steps < 1:
        raise UserError(f"train.steps={train.steps} must be at least 1")
    if train.max_nonfinite_steps < 1:
        raise UserError(f"train.max_nonfinite_steps={train.max_nonfinite_steps} must be at least 1")
    if train.ema is not None and not 0 < train.ema < 1:
        raise UserError(f"train.ema={train.ema} must lie between 0 and 1, such as 0.9999; null keeps no average")


def check_evaluation(config: Config, world: int) -> None:
    """Raise UserError when `world` processes cannot evaluate a run; how it was trained, and on how many, does not matter."""
    check_model(config.model, config.router)
    check_parallel(config, world)
    _check_precision(config)
    _check_colours(config.data)
    _check_evaluation_batch(config, world)


def _check_precision(config: Config) -> None:
    if config.train.precision not in ("bf16", "fp32"):
        raise UserError(f"train.precision={config.train.precision}: choose bf16 or fp32")
    if config.train.grad_dtype not in ("bf16", "fp32"):
        raise UserError(f"train.grad_dtype={config.train.grad_dtype}: choose fp32 or bf16")
    if config.train.precision == "fp32" and config.train.grad_dtype != "fp32":
        raise UserError(f"train.grad_dtype={config.train.grad_dtype} needs train.precision=bf16: float32 gradients are not cut")


def _check_colours(data: DataConfig) -> None:
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise UserError(f"{key}={list(values)} should be three numbers: red, green, blue, of values from 0 to 1")
    for name in ("max_bad_share", "max_bad_shards"):
        if not 0 <= getattr(data, name) <= 1:
            raise UserError(f"data.{name}={getattr(data, name)} should be a share from 0 to 1")
    if not data.remote_timeout > 0:
        raise UserError(f"data.remote_timeout={data.remote_timeout} should be seconds above 0")
    if data.remote_tries < 1:
        raise UserError(f"data.remote_tries={data.remote_tries} should be at least 1")
    if min(data.std) <= 0:
        raise UserError(f"data.std={list(data.std)} must be above 0: images are divided by it")


def _check_optimizer(optim: OptimConfig) -> None:
    if not (math.isfinite(optim.lr) and optim.lr > 0):
        raise UserError(f"optim.lr={optim.lr} must be above 0 and finite")
    for name in ("weight_decay", "eps", "clip_norm"):
        if not getattr(optim, name) >= 0:
            raise UserError(f"optim.{name}={getattr(optim, name)} must not be negative")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            raise UserError(f"optim.{name}={getattr(optim, name)} must lie between 0 and 1, and below 1")


def _check_rest(config: Config) -> None:
    for key, steps in (
        ("log.every", config.log.every),
        ("eval.every", config.eval.every),
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("checkpoint.every_minutes", config.checkpoint.every_minutes),
    ):
        if steps is not None and not steps >= 0:
            raise UserError(f"{key}={steps} must not be negative; 0 is only at the end")
    _check_checkpoint(config.checkpoint)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must lie between 0 and {2**32 - 1}")
    if not config.run.name or not config.run.dir:
        raise UserError("run.name and run.dir must not be empty: the run directory is runs/<run.name>, or run.dir")


def _check_checkpoint(config: CheckpointConfig) -> None:
    if config.keep < 1:
        raise UserError(f"checkpoint.keep={config.keep} must be at least 1: a resume needs the newest")
    if config.keep_every is not None and config.keep_every < 1:
        raise UserError(f"checkpoint.keep_every={config.keep_every} must be at least 1, or null to keep none for ever")
    if config.best_mode not in ("max", "min"):
        raise UserError(f"checkpoint.best_mode={config.best_mode}: choose max or min")
    if config.on_failure not in ("stop", "continue"):
        raise UserError(f"checkpoint.on_failure={config.on_failure}: choose stop or continue")
    if not config.timeout_minutes > 0:
        raise UserError(f"checkpoint.timeout_minutes={config.timeout_minutes} must be above 0")


def _check_training_batch(config: Config, world: int) -> None:
    train = config.train
    if train.accumulate < 1:
        raise UserError(f"train.accumulate={train.accumulate} must be at least 1")
    pieces = world * train.accumulate
    if train.batch_size < pieces or train.batch_size % pieces:
        raise UserError(
            f"train.batch_size={train.batch_size} (global) is not divisible by {count_processes(world)} x {train.accumulate} "
            f"micro-batches: use a multiple of {pieces}"
        )
    local, group = train.batch_size // pieces, config.router.group_size
    if group is not None and (group < 1 or local % min(group, local)):
        raise UserError(f"router.group_size={group} does not divide the {local} pairs of one process's micro-batch")


def _check_evaluation_batch(config: Config, world: int) -> None:
    if config.eval.batch_size < world or config.eval.batch_size % world:
        raise UserError(
            f"eval.batch_size={config.eval.batch_size} (global) is not divisible by the {count_processes(world)}: "
            f"use a multiple of {world}"
        )


def count_processes(world: int) -> str:
    """`1 process`, `2 processes`."""
    return f"{world} process{'es' if world > 1 else ''}"


def check_schedule(config: ScheduleConfig, steps: int) -> None:
    """Raise UserError for a schedule that cannot be."""
    if config.kind not in ("cosine", "rsqrt"):
        raise UserError(f"schedule.kind={config.kind}: choose cosine or rsqrt{did_you_mean(config.kind, ('cosine', 'rsqrt'))}")
    if config.warmup_steps < 0 or config.cooldown_steps < 0:
        raise UserError("schedule.warmup_steps and schedule.cooldown_steps must not be negative")
    if config.timescale is not None and config.timescale < 1:
        raise UserError(f"schedule.timescale={config.timescale} must be at least 1, or null for schedule.warmup_steps")
    if not config.final_factor >= 0:
        raise UserError(f"schedule.final_factor={config.final_factor} must not be negative")
    if config.kind == "rsqrt" and config.warmup_steps + config.cooldown_steps > steps:
        raise UserError(
            f"schedule.warmup_steps={config.warmup_steps} and schedule.cooldown_steps={config.cooldown_steps} do not fit "
            f"train.steps={steps}: shorten them"
        )
