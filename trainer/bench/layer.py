"""The expert layer against the dense MLP of the same FLOPs, and against the layers of others with the same weights."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.auxiliary import RoutingSums, auxiliary_loss
from model.config import RouterConfig
from model.experts import ExpertLayer
from model.mlp import MLP
from model.peers import SingleProcess
from model.routing import assign_slots, capacity, choose_experts
from model.stream import IMAGE, TEXT, Segment, TokenStream
from trainer.bench.runs import Report
from trainer.distributed.processes import Processes
from trainer.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = [
    *(f"4096:{width}:{experts}:{precision}" for precision in DTYPES for width in (256, 768) for experts in (8, 32)),
    *(f"{tokens}:256:8:{precision}" for precision in DTYPES for tokens in (8192, 65536)),
]
WARM_UP, REPEATS = 2, 7
CHECKED_TOKENS = 256
ONE_HOT_TOKENS = 4096  # FairScale's masks are [tokens, experts, slots]: tokens squared
TEXT_SHARE = 4  # one token in so many is a text's
COLUMNS = (
    "tokens",
    "width",
    "experts",
    "type",
    "dense MLP",
    "ours, µs a token",
    "ours / dense",
    "DeepSpeed",
    "FairScale",
    "loop",
)
HEADER = f"""# Expert layer

Forward and backward of one layer, hidden width four times the width, one expert a token, capacity factor 1. Each cell of the last
four columns is the time over that of the *dense MLP*, which does the same multiplications: the median of {REPEATS} rounds, in
which all run in turn, and in brackets the smallest and largest. *Ours* is the whole layer as it trains: noise, Batch Priority
Routing, auxiliary losses, statistics of both modalities. *DeepSpeed* is `deepspeed.moe.layer.MoE` (k=1, without random token
selection) with its loss. *FairScale* is `fairscale.nn.MOELayer` with a gate for one expert a token, as its own takes two; up to
{ONE_HOT_TOKENS} tokens, since its masks grow with their square. *Loop* is what one would write first: for each expert, pick its
tokens, apply its MLP, add. Before they are timed, all get the same weights and tokens and must give the same outputs and the same
gradient of the tokens.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass(frozen=True)
class Shape:
    """What a row measures."""

    tokens: int
    width: int
    experts: int
    precision: str

    @staticmethod
    def of(text: str) -> "Shape":
        """From `tokens:width:experts:precision`. Raises UserError for anything else."""
        try:
            tokens, width, experts, precision = text.split(":")
            shape = Shape(int(tokens), int(width), int(experts), precision)
        except ValueError:
            shape = Shape(0, 0, 0, "")
        if min(shape.tokens, shape.width, shape.experts) < 1 or shape.precision not in DTYPES or shape.tokens % shape.experts:
            raise UserError(
                f"rows={text}: write tokens:width:experts:fp32 or :bf16, such as {ROWS[0]}, tokens divisible by experts"
            )
        return shape


@dataclass(frozen=True)
class Row:
    """Seconds of forward and backward in each round, by what ran."""

    shape: Shape
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, name: str) -> list[float]:
        """The time over the dense MLP's, in each round."""
        return [one / dense for one, dense in zip(self.seconds[name], self.seconds["dense"], strict=True)]


class _Dense(MLP):
    def losses(self, x_nd: Tensor) -> tuple[Tensor, Tensor | None]:
        return self(x_nd), None


class _Ours(nn.Module):
    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.layer = layer

    def losses(self, x_nd: Tensor) -> tuple[Tensor, Tensor | None]:
        y_nd, packed = self.layer(_stream(x_nd))
        sums = RoutingSums.unpack(packed, self.layer.num_experts)
        return y_nd, auxiliary_loss([sums], self.layer.config.aux)[0]


class _Loop(nn.Module):
    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.router, self.mlps, self.factor = _router(layer), nn.ModuleList(_mlps(layer)), layer.config.capacity_factor

    def losses(self, x_nd: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_n, expert_n = F.linear(x_nd.float(), self.router.float()).softmax(-1).max(-1)
        places = capacity(len(x_nd), len(self.mlps), 1, self.factor)
        y_nd = torch.zeros_like(x_nd)
        for expert, mlp in enumerate(self.mlps):
            token = (expert_n == expert).nonzero().squeeze(1)[:places]
            y_nd = y_nd.index_add(0, token, mlp(x_nd[token]) * gate_n[token, None].to(x_nd.dtype))
        return y_nd, None


class _DeepSpeed(nn.Module):
    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE

        width, mlps, factor = layer.router.weight.shape[1], _mlps(layer), layer.config.capacity_factor
        self.moe = MoE(width, mlps[0], layer.num_experts, k=1, capacity_factor=factor, min_capacity=1, use_rts=False)
        self.moe.deepspeed_moe.experts.deepspeed_experts = nn.ModuleList(mlps)
        self.moe.deepspeed_moe.gate.wg.weight = _router(layer)

    def losses(self, x_nd: Tensor) -> tuple[Tensor, Tensor | None]:
        y_nd, loss, _ = self.moe(x_nd)
        return y_nd, loss


class _OneHotGate(nn.Module):
    """FairScale asks of a gate: a loss, the weights `[N, E, C]` of tokens in slots, and where they are not 0."""

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.weight, self.factor = _router(layer), layer.config.capacity_factor

    def forward(self, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates = choose_experts(F.linear(x_nd.float(), self.weight.float()), 1)
        tokens, experts = gates.logits_ne.shape
        places = capacity(tokens, experts, 1, self.factor)
        valid_n = torch.ones(tokens, dtype=torch.bool, device=x_nd.device)
        slot_n = assign_slots(gates, valid_n, None, 1, experts, places, "order").slot_of_choice.squeeze(1)
        one_hot_ns = torch.zeros(tokens, experts * places, dtype=torch.bool, device=x_nd.device)
        one_hot_ns.scatter_(1, slot_n.clamp(min=0).unsqueeze(1), (slot_n >= 0).unsqueeze(1))
        mask_nec = one_hot_ns.view(tokens, experts, places)
        return gates.gate_nk.sum() * 0, mask_nec * gates.gate_nk.to(x_nd.dtype).unsqueeze(-1), mask_nec


class _FairScale(nn.Module):
    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        from fairscale.nn import MOELayer

        self.moe = MOELayer(_OneHotGate(layer), nn.ModuleList(_mlps(layer)))

    def losses(self, x_nd: Tensor) -> tuple[Tensor, Tensor | None]:
        # Its masks are cast to float32, whatever the tokens are: in bfloat16, its products need autocast.
        with torch.autocast(x_nd.device.type, x_nd.dtype, enabled=x_nd.dtype != torch.float32):
            y_nd: Tensor = self.moe(x_nd.view(len(self.moe.experts), -1, x_nd.shape[1]))
        return y_nd.view_as(x_nd).to(x_nd.dtype), None


PEERS: dict[str, Callable[[ExpertLayer], Any]] = {"DeepSpeed": _DeepSpeed, "FairScale": _FairScale, "loop": _Loop}


def bench(processes: Processes, rows: list[str]) -> Report:
    """The table, and each row's times. For one process."""
    if processes.world > 1:
        raise UserError("trainer.bench layer measures one process: start it without torchrun")
    measured = [_measure(Shape.of(row), processes.device) for row in rows or ROWS]
    return Report(HEADER + "".join(map(_line, measured)), [asdict(row) for row in measured])


def _stream(x_nd: Tensor) -> TokenStream:
    texts = len(x_nd) // TEXT_SHARE
    segments = (Segment(IMAGE, 1, len(x_nd) - texts), Segment(TEXT, 1, texts))
    modality_n = (torch.arange(len(x_nd), device=x_nd.device) >= len(x_nd) - texts).to(torch.int64)
    return TokenStream(x_nd, modality_n, torch.ones_like(modality_n, dtype=torch.bool), segments)


def _layer(shape: Shape, device: torch.device, **router: Any) -> ExpertLayer:
    """Our layer with random weights, the router's such that bfloat16 holds them, since others round them to that."""
    layer = ExpertLayer(shape.width, 4 * shape.width, shape.experts, RouterConfig(**router), SingleProcess())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5 * shape.width**-0.5)
            parameter.copy_(parameter.bfloat16())
    return layer.to(device, DTYPES[shape.precision])


def _router(layer: ExpertLayer) -> nn.Parameter:
    return nn.Parameter(layer.router.weight.detach().to(layer.experts.up.dtype))


def _mlps(layer: ExpertLayer) -> list[MLP]:
    """The experts as MLPs of their own."""
    experts, mlps = layer.experts, []
    for up, up_bias, down, down_bias in zip(experts.up, experts.up_bias, experts.down, experts.down_bias, strict=True):
        mlp = MLP(*up.shape).to(up.device, up.dtype)
        with torch.no_grad():
            for to, value in (
                (mlp.up.weight, up.T),
                (mlp.up.bias, up_bias[0]),
                (mlp.down.weight, down.T),
                (mlp.down.bias, down_bias[0]),
            ):
                to.copy_(value)
        mlps.append(mlp)
    return mlps


def _names(shape: Shape) -> list[str]:
    return [name for name in PEERS if name != "FairScale" or shape.tokens <= ONE_HOT_TOKENS]


def check(shape: Shape, device: torch.device) -> None:
    """With room for all tokens, raise an AssertionError where one of the others gives other outputs or gradients than ours."""
    small = replace(shape, tokens=-(-CHECKED_TOKENS // shape.experts) * shape.experts)
    layer = _layer(small, device, noise=0.0, capacity_factor=float(small.experts))
    x_nd = torch.randn(small.tokens, small.width, device=device).to(DTYPES[small.precision])
    weight_nd = torch.randn_like(x_nd)
    wanted = _outputs(_Ours(layer), x_nd, weight_nd)
    tolerance = 1e-4 if small.precision == "fp32" else 3e-2
    for name in _names(shape):
        for what, actual, expected in zip(
            ("output", "gradient"), _outputs(PEERS[name](layer), x_nd, weight_nd), wanted, strict=True
        ):
            off = _off(actual.float(), expected.float(), small.precision)
            assert off < tolerance, f"{name} at {shape}: its {what} is off by {off:.2g}"


def _off(actual_nd: Tensor, expected_nd: Tensor, precision: str) -> float:
    """How far they are apart, relative to their size: as a whole; in bf16 the token that is farther off than 98% of them.

    Others' routers compute in bf16 too, where a token whose two best gates are near may go elsewhere.
    """
    if precision == "fp32":
        return float((actual_nd - expected_nd).norm() / expected_nd.norm())
    off_n = (actual_nd - expected_nd).norm(dim=1) / expected_nd.norm(dim=1)
    return float(off_n.quantile(0.98))


def _outputs(subject: Any, x_nd: Tensor, weight_nd: Tensor) -> tuple[Tensor, Tensor]:
    x_nd = x_nd.detach().requires_grad_()
    y_nd, _ = subject.losses(x_nd)
    return y_nd.detach(), torch.autograd.grad((y_nd * weight_nd).sum(), x_nd)[0]


def _measure(shape: Shape, device: torch.device) -> Row:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(shape, device)
        layer = _layer(shape, device)
        subjects: dict[str, Any] = {"dense": _Dense(shape.width, 4 * shape.width).to(device, DTYPES[shape.precision])}
        subjects |= {"ours": _Ours(layer)} | {name: PEERS[name](layer) for name in _names(shape)}
        x_nd = torch.randn(shape.tokens, shape.width, device=device).to(DTYPES[shape.precision])
        weight_nd = torch.randn_like(x_nd)
        row = Row(shape, {name: [] for name in subjects})
        for number in range(-WARM_UP, REPEATS):
            order = list(subjects) if number % 2 else list(reversed(subjects))
            for name in order:
                seconds = _timed(subjects[name], x_nd, weight_nd)
                if number >= 0:
                    row.seconds[name].append(seconds)
    return row


def _timed(subject: Any, x_nd: Tensor, weight_nd: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    x_nd = x_nd.detach().requires_grad_()
    _wait(x_nd.device)
    started = time.perf_counter()
    y_nd, loss = subject.losses(x_nd)
    total = (y_nd * weight_nd).sum()
    (total if loss is None else total + loss).backward()
    _wait(x_nd.device)
    seconds = time.perf_counter() - started
    subject.zero_grad(set_to_none=True)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _line(row: Row) -> str:
    shape, dense, ours = row.shape, median(row.seconds["dense"]), median(row.seconds["ours"])
    cells = [f"{shape.tokens}", f"{shape.width}", f"{shape.experts}", shape.precision]
    cells += [f"{1000 * dense:.1f} ms", f"{1e6 * ours / shape.tokens:.2f}"]
    for name in ("ours", *PEERS):
        ratios = row.ratios(name) if name in row.seconds else None
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})" if ratios else "")
    return f"| {' | '.join(cells)} |\n"
