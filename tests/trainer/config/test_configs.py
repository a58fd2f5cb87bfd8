"""Every configuration under conf/ composes and builds; the sizes are what their names promise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import RouterConfig
from model.count import count_parameters, step_flops
from model.limoe import LIMoE
from trainer.config.checks import check_layout, check_model, check_schedule
from trainer.config.compose import CONF, compose_config
from trainer.estimate.rows import describe, readable


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


SIZES = [name.removeprefix("limoe_") for name in choices("model") if name.startswith("limoe_")]


@pytest.mark.parametrize("name", choices("model"))
def test_a_model_builds_and_counts_what_it_has(name: str):
    config = compose_config([f"model={name}"])
    assert config.model.name == name
    check_model(config)
    model = LIMoE.without_values(config.model, config.router)
    counts = count_parameters(config.model, config.router)
    assert sum(parameter.numel() for parameter in model.parameters()) == counts.total


@pytest.mark.parametrize("name", choices("router"))
def test_a_router_composes(name: str):
    config = compose_config([f"router={name}"])
    check_layout(config, world=1)
    aux = config.router.aux
    switched_on = {key for key in ("importance", "load", "z", "local_text", "global_image", "global_text") if getattr(aux, key)}
    assert switched_on == {
        "limoe": {"importance", "load", "z", "local_text", "global_image", "global_text"},
        "classic": {"importance", "load"},
        "vmoe": {"importance", "load"},
        "none": set(),
    }.get(name, switched_on)
    assert config.router.priority == {"classic": "order", "none": "order", "vmoe": "token"}.get(name, "gate")


def test_the_default_router_is_the_papers():
    router = compose_config([]).router
    assert (router.top_k, router.capacity_factor, router.eval_capacity_factor, router.group_size) == (1, 1.0, None, None)
    assert router.noise == 1.0  # in units of 1/E
    aux = router.aux
    assert aux.scale == 0.04
    assert {aux.importance, aux.load, aux.z, aux.local_text, aux.global_image, aux.global_text} == {1.0}
    assert aux.local_image == 0.0
    assert (aux.image_share, aux.text_share) == (20 / 32, 9 / 32)


@pytest.mark.parametrize("name", choices("schedule"))
def test_a_schedule_composes_for_a_run_of_the_papers_length(name: str):
    config = compose_config([f"schedule={name}", "train.steps=500000"])
    assert config.schedule.kind == name
    check_schedule(config.schedule, config.train.steps)


@pytest.mark.parametrize("name", choices("data"))
def test_a_data_set_composes(name: str):
    assert compose_config([f"data={name}"]).data.kind == name


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_fits_the_processes_it_is_for(name: str):
    config = compose_config([f"experiment={name}"])
    check_layout(config, world=config.parallel.expert_parallel)
    check_schedule(config.schedule, config.train.steps)


FAMILY = ("limoe", "dense", "two_tower")
MOST_APART = 0.03  # of a twin's compute; what is left is the router's


@pytest.mark.parametrize("size", SIZES)
def test_twins_have_equal_compute(size: str):
    configs = [compose_config([f"model={kind}_{size}"]) for kind in FAMILY]
    flops = [step_flops(config.model, config.router, 1) for config in configs]
    assert max(flops) <= (1 + MOST_APART) * min(flops), dict(zip(FAMILY, flops, strict=True))


def test_twins_have_equal_compute_as_torch_counts_it():
    """Matrix products of forward and backward as they run, buffers of experts and the router included."""
    counted = []
    for kind in FAMILY:
        config = compose_config(["experiment=baselines", f"model={kind}_tiny"])
        model, pairs = LIMoE(config.model, config.router), 8
        images = torch.rand(pairs, 3, config.model.image_size, config.model.image_size)
        texts = torch.randint(1, 100, (pairs, config.model.text_length))
        with FlopCounterMode(display=False) as counter:
            found = model(images, texts)
            (found.images @ found.texts.T).sum().backward()
        counted.append(counter.get_total_flops() / pairs)
        # Attention is not counted on a CPU; step_flops applies the heads to every token.
        assert 0.85 < counted[-1] / step_flops(config.model, config.router, 1) < 1
    assert max(counted) <= (1 + MOST_APART) * min(counted), dict(zip(FAMILY, counted, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_the_dense_baseline_has_the_compute_of_the_mixture(size: str):
    limoe, dense = compose_config([f"model=limoe_{size}"]), compose_config([f"model=dense_{size}"])
    routers = len(limoe.model.expert_layers) * limoe.model.width * limoe.model.experts
    assert count_parameters(limoe.model, limoe.router).applied - count_parameters(dense.model, dense.router).applied == routers


@pytest.mark.parametrize("size", SIZES)
def test_the_two_towers_are_two_of_the_dense_one(size: str):
    dense, towers = compose_config([f"model=dense_{size}"]).model, compose_config([f"model=two_tower_{size}"]).model
    assert (dense.towers, towers.towers) == (1, 2)
    for name in ("width", "mlp", "heads", "layers", "image_size", "patch", "text_length", "vocabulary", "embedding"):
        assert getattr(dense, name) == getattr(towers, name), name


OF_OPEN_CLIP = {
    "clip_b32": 151_277_313,
    "clip_b16": 149_620_737,
    "clip_l14": 427_616_513,
    "clip_h14": 986_109_441,
    "siglip_b16": 203_155_970,
    "siglip_l16": 652_150_786,
}
"""Parameters as open_clip 3.3.0 counts them; SigLIP's with the bias of the logits."""


@pytest.mark.parametrize("name", OF_OPEN_CLIP)
def test_models_of_others_have_their_parameters(name: str):
    model = compose_config([f"model={name}"]).model
    extra = model.text_tower.width  # padding has a row of its own
    if model.head_bias:
        extra += (model.width + 1) * model.embedding  # SigLIP has no projection of images
    assert count_parameters(model, RouterConfig()).total == OF_OPEN_CLIP[name] + extra


def test_the_largest_model_has_the_papers_size():
    config = compose_config(["model=limoe_h14"])
    counts = count_parameters(config.model, config.router)
    assert 5.55e9 < counts.total < 5.65e9
    assert 670e6 < counts.applied < 680e6
    rows = dict(describe(config, world=1))
    assert rows["parameters"].startswith("5.6B")
    assert rows["applied per token"].startswith("675M")
    assert rows["training FLOPs per pair"] == readable(step_flops(config.model, config.router, 1)) == "1.1T"


@pytest.mark.slow
def test_describe_prints_the_papers_size():
    command = [sys.executable, "-m", "trainer.describe", "model=limoe_h14", "parallel.expert_parallel=8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "5.6B" in done.stdout
    assert "675M" in done.stdout
    assert done.stderr == ""
