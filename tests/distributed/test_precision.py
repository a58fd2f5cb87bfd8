"""In bf16: gradients are added up in float32, and the logit scale and the routers stay in float32, in every layout."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
from model.precision import Float32Module, float32_parameters
from tests.distributed.setups import Layout, TinyRun, batch, tiny, whole
from tests.distributed.spawn import run_distributed
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow

BF16 = {"train__precision": "bf16"}
LAYOUTS = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
"""Expert-parallel size and ZeRO stage, of two processes."""


def near_the_top(processes: Processes, layouts: list[Layout]) -> list[tuple[list[float], dict[str, Tensor], dict[str, Any]]]:
    """By layout: the logit scales that three steps use, the float32 parameters as the next step sees them, and the state."""
    results = []
    for layout in layouts:
        run = TinyRun(tiny(layout.with_(**BF16, model__initial_scale=90.0, optim__lr=1e-3)), processes)
        scales = []
        for _ in range(3):
            run.step()
            with torch.no_grad():
                output = run.engine(*(rows[:2] for rows in batch(99, run.config)))
            scales.append(float(output.scale))
        results.append((scales, _used(run), run.share()))
    return results


def _used(run: TinyRun) -> dict[str, Tensor]:
    """The float32 parameters as a forward pass sees them: stage 3 gathers one for its module's pass alone."""
    used: dict[str, Tensor] = {}

    def note(module: torch.nn.Module, _: Any) -> None:
        used.update({names[id(parameter)]: parameter.detach().clone() for parameter in module.parameters(recurse=False)})

    model = run.engine.module
    names = {id(parameter): name for name, parameter in float32_parameters(model)}
    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, Float32Module)]
    with torch.no_grad():
        run.engine(*(rows[:2] for rows in batch(99, run.config)))
    for hook in hooks:
        hook.remove()
    return used


def test_the_logit_scale_and_the_routers_are_used_as_they_are_learned() -> None:
    layouts = [Layout(2, ep, stage) for ep, stage in LAYOUTS]
    ranks = run_distributed(near_the_top, 2, layouts)
    for number, layout in enumerate(layouts):
        print(layout)
        scales, used, _ = ranks[0][number]
        state = whole(rank[number][2] for rank in ranks)
        assert len(set(scales)) == 3
        logs = torch.tensor(scales, dtype=torch.float64).log()
        assert ((logs - logs.bfloat16().double()).abs() > 1e-4).any(), "every scale lies on a step of bfloat16"
        assert len(used) == 3
        for name, value in used.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state[f"model/{name}"]), name


def accumulate(processes: Processes, layouts: list[Layout]) -> list[dict[str, Any]]:
    """This rank's share of the state after one step of each layout."""
    shares = []
    for layout in layouts:
        run = TinyRun(tiny(layout), processes)
        run.step()
        shares.append(run.share())
    return shares


EIGHT = {**BF16, "train__accumulate": 8, "train__negatives": "micro", "train__batch_size": 64, "optim__clip_norm": 0.0}


def _added_up_in_float32() -> dict[str, Tensor]:
    """Adam's first moment after a step whose bf16 gradients were added up by hand."""
    config = tiny(Layout().with_(**EIGHT))
    model = LIMoE(config.model, config.router).initialise(config.seed).bfloat16()
    sums: dict[str, Tensor] = {}
    for micro in range(8):
        loss = training_losses(model(*batch(0, config, micro)), config.router.aux, config.model.experts, SingleProcess()).total
        (loss / 8).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] = sums.get(name, 0) + parameter.grad.double()
            parameter.grad = None
    return {f"exp_avg/{name}": (1 - config.optim.beta1) * value for name, value in sums.items()}


def accumulate_and_compare(processes: Processes, layouts: list[Layout]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The shares of `accumulate`, and what they should be: computed in the same process, by the same kernels."""
    return accumulate(processes, layouts), _added_up_in_float32()


@pytest.mark.parametrize("grad_dtype", ["fp32", "bf16"])
def test_eight_micro_batches_are_added_up_in_the_dtype_that_was_asked_for(grad_dtype: str) -> None:
    layouts = [Layout(1, 1, stage).with_(**EIGHT, train__grad_dtype=grad_dtype) for stage in (1, 2, 3)]
    shares, wanted = run_distributed(accumulate_and_compare, 1, layouts)[0]
    for layout, share in zip(layouts, shares, strict=True):
        print(layout)
        state = whole([share])
        off = {name: float((state[name] - value).norm() / value.norm()) for name, value in wanted.items()}
        if grad_dtype == "fp32":
            # Stages 2 and 3 send what is float32 from the start (routers, scale) through the same buffer as the rest, in bf16.
            precise = {name: off.pop(name) for name in list(off) if ".router." in name or "log_scale" in name}
            assert max(off.values()) < 1e-6, off
            assert len(precise) == 3 and max(precise.values()) < (1e-6 if layout.zero_stage == 1 else 4e-3), precise
        else:
            assert max(off.values()) > 1e-3, "bf16 adds up as well as float32: the comparison shows nothing"


def test_layouts_add_up_alike() -> None:
    layouts = [Layout(2, ep, stage).with_(**EIGHT) for ep, stage in LAYOUTS]
    ranks = run_distributed(accumulate, 2, layouts)
    states = [whole(rank[number] for rank in ranks) for number in range(len(layouts))]
    for layout, state in zip(layouts[1:], states[1:], strict=True):
        print(layout)
        for name, value in states[0].items():
            if name.startswith("exp_avg/"):
                assert float((state[name] - value).norm() / value.norm()) < 5e-3, name
