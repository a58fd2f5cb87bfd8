"""Which configurations can run, and on how many processes: checks before anything is built.

The limits of a single value are declared with its field (trainer.config.schema); checks that involve several values are here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig, RouterConfig
from trainer.config.keys import wrong_values
from trainer.config.profile import check_profile
from trainer.config.schema import Config, ScheduleConfig, TrainConfig
from trainer.config.sources import read_sources
from trainer.errors import UserError

EVERYTHING = ("",)
ARCHITECTURE = ("model", "router")
DESCRIBED = (*ARCHITECTURE, "parallel", "train")
JUDGED = ("data", "eval", "run", "train.precision")
EVALUATED = (*ARCHITECTURE, "parallel", *JUDGED)
"""Keys and sections that a use of the configuration needs; how a model was trained does not matter to its evaluation.

JUDGED: what the evaluation of a model needs that is not one of ours.
"""


def check_layout(config: Config, world: int) -> None:
    """Raise UserError when `world` processes cannot train with the configuration."""
    problems = list(layout_problems(config, world).values())
    if len(problems) > 1:
        raise UserError(f"{problems[0]} (and {len(problems) - 1} more: run.dry=true shows them all)")
    _raise_first(problems)


def check_evaluation(config: Config, world: int, needed: tuple[str, ...] = EVALUATED) -> None:
    """Raise UserError when `world` processes cannot evaluate a run, or what else needs these sections."""
    _raise_first(list(layout_problems(config, world, needed).values()))


def check_description(config: Config, world: int) -> None:
    """Raise UserError when the model is impossible, or cannot be spread over `world` processes."""
    _raise_first(list(layout_problems(config, world, DESCRIBED).values()))


def check_model(config: Config) -> None:
    """Raise UserError for an architecture that cannot be built."""
    _raise_first(list(layout_problems(config, 1, ARCHITECTURE).values()))


def _raise_first(problems: list[str]) -> None:
    if problems:
        raise UserError(problems[0])


def layout_problems(config: Config, world: int, needed: tuple[str, ...] = EVERYTHING) -> dict[str, str]:
    """A line for each problem in the needed sections, by the key or sections that it is about.

    A check of several values is skipped if one of them is wrong by itself.
    """
    wrong = {key: line for key, line in wrong_values(config).items() if _is_in(key, needed)}
    found = dict(wrong)
    for check in CHECKS:
        if not all(_is_in(section, needed) for section in check.sections):
            continue
        if any(_is_in(key, check.sections) for key in wrong):
            continue
        try:
            check.run(config, world)
        except UserError as problem:
            found[" ".join(check.sections)] = str(problem)
    return found


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(section in ("", key) or key.startswith(f"{section}.") for section in sections)


TEXT_TOWER = ("text_width", "text_mlp", "text_heads", "text_layers", "text_activation")
"""What only a model of two towers can have of its own for texts."""


def _check_parts(model: ModelConfig, router: RouterConfig) -> None:
    """Raise UserError for an architecture whose parts do not fit together."""
    if model.width % model.heads:
        raise UserError(
            f"model.width={model.width} is not divisible by model.heads={model.heads}: "
            f"use model.heads={_divisor(model.width, model.heads)}, or change model.width"
        )
    texts = model.text_tower
    if texts.width % texts.heads:
        raise UserError(
            f"model.text_width={texts.width} is not divisible by model.text_heads={texts.heads}: "
            f"use model.text_heads={_divisor(texts.width, texts.heads)}, or change model.text_width"
        )
    own = [name for name in TEXT_TOWER if getattr(model, name) is not None]
    if model.towers == 1 and own:
        raise UserError(
            f"model.{own[0]}={getattr(model, own[0])} is for the texts' tower of two: use model.towers=2, or model.{own[0]}=null"
        )
    if model.image_size % model.patch:
        raise UserError(
            f"model.image_size={model.image_size} is not divisible by model.patch={model.patch}: "
            f"use model.patch={_divisor(model.image_size, model.patch)}, or change model.image_size"
        )
    if model.expert_layers and model.mlp % model.expert_granularity:
        raise UserError(
            f"model.mlp={model.mlp} is not divisible by model.expert_granularity={model.expert_granularity}: "
            f"use model.expert_granularity={_divisor(model.mlp, model.expert_granularity)}, or change model.mlp"
        )
    beyond = [layer for layer in model.expert_layers if layer >= model.layers]
    if beyond:
        raise UserError(
            f"model.expert_layers names {beyond}, but the blocks are 0 to {model.layers - 1} (model.layers={model.layers}): "
            f"use model.expert_layers={_typed(layer for layer in model.expert_layers if layer < model.layers)}, "
            f"or model.layers={max(beyond) + 1}"
        )
    if len(set(model.expert_layers)) < len(model.expert_layers):
        raise UserError(
            f"model.expert_layers={list(model.expert_layers)} names a block twice: "
            f"use model.expert_layers={_typed(dict.fromkeys(model.expert_layers))}"
        )
    if model.towers == 2 and model.expert_layers:
        raise UserError("model.towers=2 is the dense baseline: set model.expert_layers=[], or model.towers=1 for experts")
    if model.expert_layers and router.top_k > model.experts:
        raise UserError(
            f"router.top_k={router.top_k} is more than model.experts={model.experts}: use router.top_k={model.experts}, or less"
        )


def _check_router(router: RouterConfig) -> None:
    """Raise UserError for parts of a router that do not go together."""
    if router.choice == "expert" and router.bias.kind != "none":
        raise UserError(
            f"router.bias.kind={router.bias.kind} is for tokens that choose; with router.choice=expert the load is even by "
            f"itself: use router.bias.kind=none, or router.choice=token"
        )
    if router.choice == "expert" and router.aux.load:
        raise UserError(
            f"router.aux.load={router.aux.load:g} is for tokens that choose; with router.choice=expert the load is even by "
            f"itself: use router.aux.load=0, or router.choice=token"
        )
    if router.bias.kind != "none" and router.aux.load:
        raise UserError(
            f"router.aux.load={router.aux.load:g} knows nothing of the bias that router.bias.kind={router.bias.kind} adds where "
            f"experts are chosen: use router.aux.load=0, or router.bias.kind=none"
        )
    for name in ("image_rate", "text_rate"):
        if getattr(router.bias, name) is not None and router.bias.kind != "modality":
            raise UserError(
                f"router.bias.{name}={getattr(router.bias, name):g} needs a bias by modality, but router.bias.kind="
                f"{router.bias.kind}: use router.bias.kind=modality, or leave it out"
            )


def _check_init_blocks(config: Config) -> None:
    """Raise UserError for blocks of no run."""
    if config.init_blocks and config.init_from is None:
        raise UserError("init_blocks names blocks of the run to start from: set init_from, or leave out init_blocks")


def _check_factors(factors: Any) -> None:
    """Raise UserError for factors that are no numbers by pattern."""
    if factors is None:
        return
    numbers = factors.values() if isinstance(factors, Mapping) else [None]
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise UserError(f"optim.lr_factors={factors} must be numbers by pattern, as in {{towers.0.blocks.*:0.1,*.router.*:3}}")


def _check_parallel(config: Config, world: int) -> None:
    """Raise UserError when the model cannot be spread over `world` processes as asked."""
    ep, experts = config.parallel.expert_parallel, config.model.routed_experts
    if not config.model.expert_layers:
        if ep > 1:
            raise UserError(
                f"parallel.expert_parallel={ep}, but model {config.model.name} has no expert layers: "
                f"use parallel.expert_parallel=1"
            )
        return
    if experts % ep:
        raise UserError(
            f"model.experts={config.model.experts}{_finer(config.model)} is not divisible by parallel.expert_parallel={ep}: "
            f"every rank must own the same number of experts; "
            f"use parallel.expert_parallel={_divisor(math.gcd(world, experts), ep)}"
        )
    if world % ep:
        raise UserError(
            f"parallel.expert_parallel={ep} does not divide the {count_processes(world)} of this run: start a multiple of {ep} "
            f"(torchrun --nproc-per-node {ep}), or set parallel.expert_parallel={math.gcd(world, ep)}"
        )


def _finer(model: ModelConfig) -> str:
    return f" * model.expert_granularity={model.expert_granularity}" if model.expert_granularity > 1 else ""


def _check_gradients(train: TrainConfig) -> None:
    """Raise UserError for gradients in lower precision than a run that computes everything in float32."""
    if train.precision == "fp32" and train.grad_dtype != "fp32":
        raise UserError(
            f"train.grad_dtype={train.grad_dtype} needs train.precision=bf16: a float32 run sums its gradients in float32; "
            f"use train.grad_dtype=fp32"
        )


def _check_training_batch(config: Config, world: int) -> None:
    train, group = config.train, config.router.group_size
    pieces = world * train.accumulate
    if train.batch_size % pieces:
        fitting = pieces * (group or 1)  # groups divide a micro-batch: what we propose must pass their check
        raise UserError(
            f"train.batch_size={train.batch_size} (global) is not divisible by {count_processes(world)} x {train.accumulate} "
            f"micro-batches: use a multiple of {fitting}, such as train.batch_size={_multiple(train.batch_size, fitting)}"
            f"{_smaller_pieces(config, world)}"
        )
    local = train.batch_size // pieces
    if group is not None and local % min(group, local):
        raise UserError(
            f"router.group_size={group} does not divide the {local} pairs of one process's micro-batch: "
            f"use router.group_size={_divisor(local, group)}"
        )


def _smaller_pieces(config: Config, world: int) -> str:
    """`, or train.accumulate=4`: the next larger number of micro-batches that fits the batch as it is; "" if there is none."""
    local, over = divmod(config.train.batch_size, world)
    if over:
        return ""
    for accumulate in range(config.train.accumulate + 1, local + 1):
        pairs = local // accumulate
        if local % accumulate == 0 and pairs % min(config.router.group_size or 1, pairs) == 0:
            return f", or train.accumulate={accumulate}"
    return ""


def _check_evaluation_batch(config: Config, world: int) -> None:
    size = config.eval.batch_size
    if size % world:
        raise UserError(
            f"eval.batch_size={size} (global) is not divisible by the {count_processes(world)}: "
            f"use a multiple of {world}, such as eval.batch_size={_multiple(size, world)}"
        )


def check_schedule(config: ScheduleConfig, steps: int) -> None:
    """Raise UserError for a schedule that does not fit the run's steps."""
    both = config.warmup_steps + config.cooldown_steps
    if config.kind == "rsqrt" and both > steps:
        warmup, cooldown = (steps * part // both for part in (config.warmup_steps, config.cooldown_steps))
        raise UserError(
            f"schedule.warmup_steps={config.warmup_steps} and schedule.cooldown_steps={config.cooldown_steps} do not fit "
            f"train.steps={steps}: shorten them, such as to schedule.warmup_steps={warmup} and schedule.cooldown_steps={cooldown}"
        )


def count_processes(world: int) -> str:
    """`1 process`, `2 processes`."""
    return f"{world} process{'es' if world > 1 else ''}"


def _typed(numbers: Iterable[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _divisor(number: int, most: int) -> int:
    """The largest divisor of at most `most`."""
    return max(divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0)


def _multiple(wanted: int, of: int) -> int:
    """The multiple of `of`, other than 0, that is nearest to a number."""
    return max(1, round(wanted / of)) * of


def _check_artifacts(config: Config) -> None:
    """Raise UserError when the best checkpoint is asked for, but none is the best."""
    if config.log.artifacts == "best" and config.checkpoint.best is None:
        raise UserError(
            "log.artifacts=best needs a metric: add checkpoint.best=eval/zeroshot/top1 (or another), or use log.artifacts=last"
        )


def _check_sources(train: Any) -> None:
    """Raise UserError for named sources of which one is wrong by itself; whether there are shards is not looked at."""
    read_sources(train)


@dataclass(frozen=True)
class _Check:
    """A check of several values, for a number of processes; sections: the keys and sections that it reads."""

    sections: tuple[str, ...]
    run: Callable[[Config, int], None]


CHECKS = (
    _Check(("data.train",), lambda config, world: _check_sources(config.data.train)),
    _Check(ARCHITECTURE, lambda config, world: _check_parts(config.model, config.router)),
    _Check(("router",), lambda config, world: _check_router(config.router)),
    _Check(("model", "parallel"), _check_parallel),
    _Check(("train", "router.group_size"), _check_training_batch),
    _Check(("train.precision", "train.grad_dtype"), lambda config, world: _check_gradients(config.train)),
    _Check(("train.profile", "train.profile_ranks", "train.steps"), lambda config, world: check_profile(config.train, world)),
    _Check(("eval.batch_size",), _check_evaluation_batch),
    _Check(("log.artifacts", "checkpoint.best"), lambda config, world: _check_artifacts(config)),
    _Check(("optim.lr_factors",), lambda config, world: _check_factors(config.optim.lr_factors)),
    _Check(("init_from", "init_blocks"), lambda config, world: _check_init_blocks(config)),
    _Check(("schedule", "train.steps"), lambda config, world: check_schedule(config.schedule, config.train.steps)),
)
