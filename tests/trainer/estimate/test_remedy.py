"""What the dry run proposes for a run that does not fit its GPUs does fit, and every recipe fits the GPUs that its head names."""

import re
import shlex
from pathlib import Path

import pytest

from trainer.config.checks import check_layout
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.distributed.device import GPU_MEMORY_GIB, gpu_memory_gib
from trainer.errors import UserError
from trainer.estimate.memory import estimate_memory
from trainer.estimate.remedy import CUDA_BYTES, find_remedy, needed_bytes

GIB = 2**30
EXPERIMENTS = sorted((Path(__file__).parents[3] / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(
    ("overrides", "world", "gib", "changed"),
    [
        # 78 GiB of activations: recomputing them is enough.
        (["model=limoe_b16", "train.batch_size=8192"], 8, 79, ["train.activation_checkpointing"]),
        # 24 GiB of logits.
        (["model=dense_tiny", "train.batch_size=32768"], 1, 60, ["train.loss_chunk=256"]),
        # The state is too large, whatever the batch.
        (["model=limoe_h14", "train.batch_size=64"], 8, 39, ["parallel"]),
        (["model=limoe_l16", "train.batch_size=8192", "train.activation_checkpointing=blocks"], 8, 39, [""]),
        # Nothing but smaller micro-batches is left.
        (["model=dense_b16", "train.batch_size=32768", "train.activation_checkpointing=offload", "parallel.zero_stage=3"], 8, 22,
         ["train.accumulate"]),
    ],
)  # fmt: skip
def test_what_is_proposed_fits(overrides: list[str], world: int, gib: int, changed: list[str]):
    config = compose_config(overrides)
    assert needed_bytes(config, world) > gib * GIB
    remedy = find_remedy(config, world, gib * GIB)
    assert remedy is not None
    mended = compose_config([*overrides, *remedy.overrides])
    check_layout(mended, world)
    assert estimate_memory(mended, world).total + CUDA_BYTES == remedy.bytes <= gib * GIB
    assert all(any(override.startswith(key) for override in remedy.overrides) for key in changed), remedy.overrides


def test_nothing_is_proposed_where_nothing_fits():
    assert find_remedy(compose_config(["model=limoe_b16", "train.batch_size=8"]), 1, 4 * GIB) is None


def test_what_would_not_run_for_another_reason_is_not_proposed():
    config = compose_config(["model=limoe_b16", "train.batch_size=8192"])

    def whole_batches(changed: Config) -> None:
        if changed.train.activation_checkpointing != "offload":
            raise UserError("not here")

    remedy = find_remedy(config, 8, 79 * GIB, whole_batches)
    assert remedy is not None and remedy.overrides == ["train.activation_checkpointing=offload"]


def layout_of(experiment: Path) -> tuple[int, list[str]]:
    """The processes and overrides of the command in a recipe's head."""
    head = "".join(line[1:] for line in experiment.read_text().splitlines(keepends=True) if line.startswith("#"))
    if "sbatch" not in head:  # made for a laptop
        return (2 if "make train" in head else 1), []
    command = re.search(r"sbatch (?:.*\\\n)*.*", head)
    assert command, f"the head of {experiment.name} tells no command"
    words = shlex.split(command[0].replace("\\\n", " "))
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    overrides = words[words.index("slurm/train.sbatch") + 1 :]
    assert f"experiment={experiment.stem}" in overrides
    return int(options["nodes"]) * int(options["gpus-per-node"]), overrides


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_recipe_fits_the_gpus_that_its_head_names(experiment: Path):
    world, overrides = layout_of(experiment)
    config = compose_config(overrides or [f"experiment={experiment.stem}"])
    check_layout(config, world)
    assert needed_bytes(config, world) <= GPU_MEMORY_GIB["H100"] * GIB


@pytest.mark.parametrize(
    ("pattern", "world", "gpu"), [(r"two nodes: ([^\s,]+)", 16, "H100"), (r"40 GiB: ([^\s,]+)", 8, "A100-40")]
)
def test_the_recipe_of_b16_says_what_else_fits(pattern: str, world: int, gpu: str):
    (command,) = re.findall(pattern, (EXPERIMENTS[0].parent / "limoe_b16.yaml").read_text())
    config = compose_config(["experiment=limoe_b16", "data.train=x", command])
    check_layout(config, world)
    assert needed_bytes(config, world) <= GPU_MEMORY_GIB[gpu] * GIB


@pytest.mark.parametrize(("told", "gib"), [(80, 80.0), (39.5, 39.5), ("H100", 79.0), ("a100", 79.0)])
def test_memory_is_told_as_a_number_or_a_name(told: float | str, gib: float):
    assert gpu_memory_gib(told) == gib


@pytest.mark.parametrize("told", [0, -1, "H999", True, [80]])
def test_other_words_for_it_are_refused(told: object):
    with pytest.raises(UserError, match=re.escape(f"run.gpu_memory_gib={told}: give a number above 0, or one of H200")):
        gpu_memory_gib(told)  # type: ignore[arg-type]
