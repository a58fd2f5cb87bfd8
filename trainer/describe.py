"""What a configuration makes, without data or GPU: `python -m trainer.describe model=limoe_h14 parallel.expert_parallel=8`."""

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from model.count import count_parameters
from model.routing import capacity
from trainer.compose import compose_config
from trainer.config import Config
from trainer.errors import UserError
from trainer.layout import check_model, check_parallel
from trainer.performance import step_flops
from trainer.program import exit_with
from trainer.traffic import estimate_leaving

ADAM_BYTES = 12  # float32 master and two moments a parameter
EMA_BYTES = 4  # and with train.ema their float32 average


def readable(number: float) -> str:
    """A number with its unit: 5.6B, 675M, 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"
    return f"{number:.0f}"


def describe(config: Config, world: int) -> list[tuple[str, str]]:
    """What a person asks of a model before training it, as (what, value) rows; sizes are for `world` processes."""
    model, router, ep = config.model, config.router, config.parallel.expert_parallel
    check_model(model, router)
    check_parallel(config, world)
    counts = count_parameters(model, router)
    dense = counts.total - counts.experts
    weight = 2 if config.train.precision == "bf16" else 4
    rows = [
        (
            "model",
            f"{model.name}: {model.towers} tower{'s' if model.towers > 1 else ''}, {model.layers} blocks, width {model.width}",
        ),
        ("parameters", f"{readable(counts.total)} ({counts.total:,})"),
        ("applied per token", f"{readable(counts.applied)} ({counts.applied:,})"),
        ("tokens per pair", f"{model.image_tokens} image + {model.text_length} text"),
        ("training FLOPs per pair", readable(step_flops(model, router, 1))),
    ]
    if model.expert_layers:
        rows.append(
            ("expert layers", f"{len(model.expert_layers)} of {model.layers} ({', '.join(map(str, model.expert_layers))})")
        )
        rows.append(("experts", f"{model.experts} a layer, {readable(counts.experts)} parameters in all"))
        rows += _exchange_rows(config, world, weight)
    stage = config.parallel.zero_stage
    copies = world // ep
    kept = ADAM_BYTES + (EMA_BYTES if config.train.ema is not None else 0)
    state = kept * (dense / world + counts.experts / ep / copies)
    weights = weight * ((dense + counts.experts / ep) if stage < 3 else (dense / world + counts.experts / ep / copies))
    rows.append(
        (
            f"state a rank (world {world}, EP {ep}, ZeRO-{stage})",
            f"{(state + weights) / 2**30:.2f} GiB without activations and gradients",
        )
    )
    return [*rows, *leaving_rows(config, world)]


def leaving_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """What leaves a node in a step, when LOCAL_WORLD_SIZE in the environment says how many processes one has."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "0")
    if not local.isdigit():
        raise UserError(f"LOCAL_WORLD_SIZE={local} in the environment should be the number of processes of a node")
    if not 0 < int(local) < world:
        return []
    leaving = estimate_leaving(config, world, int(local))
    gib = f"{leaving.tokens / 2**30:.1f} GiB of tokens, {leaving.synchronised / 2**30:.1f} GiB of gradients and weights"
    return [(f"leaves a node of {local} processes in a step", gib)]


def _exchange_rows(config: Config, world: int, weight: int) -> list[tuple[str, str]]:
    model, router, ep = config.model, config.router, config.parallel.expert_parallel
    pairs = max(1, config.train.batch_size // world // config.train.accumulate)
    slots = capacity(pairs * (model.image_tokens + model.text_length), model.experts, router.top_k, router.capacity_factor)
    buffer = model.experts * slots * model.width * weight
    sent = 4 * len(model.expert_layers) * buffer * (ep - 1) / ep  # there and back, forward and backward
    return [
        ("slots an expert", f"{slots} for {pairs} pairs a process"),
        ("sent a rank and micro-batch", f"{sent / 2**20:.1f} MiB by all-to-all" if ep > 1 else "nothing (expert_parallel=1)"),
    ]


def _world(config: Config) -> int:
    wanted = os.environ.get("WORLD_SIZE")
    if wanted is not None and not (wanted.isdigit() and int(wanted) > 0):
        raise UserError(f"WORLD_SIZE={wanted} in the environment should be the number of processes")
    return int(wanted) if wanted else max(1, config.parallel.expert_parallel)


def main() -> None:
    """Compose the configuration and print its description; WORLD_SIZE and LOCAL_WORLD_SIZE (a node's) set the processes."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    try:
        config = compose_config(sys.argv[1:])
        rows = describe(config, _world(config))
    except UserError as problem:
        exit_with(problem)
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for what, value in rows:
        table.add_row(what, value)
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
