"""The encoders as programs that run without this project, torch.export's (.pt2) and ONNX graphs, each compared with PyTorch."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from model.config import ModelConfig
from model.limoe import LIMoE
from model.portable import INPUTS, OUTPUTS, portable_encoder
from model.stream import MODALITIES
from model.trim import has
from trainer.errors import UserError, check_extra
from trainer.export.request import ONNX, PT2

EXTERNAL = ".data"
"""Ends the name of the file beside an ONNX graph that has its weights, if they are too large for one file (2 GB)."""
BATCHES = (1, 5)
"""Sizes of the batches on which a program and the model are compared."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest difference of a number of a unit vector that is taken for rounding, by the dtype that the program computes in."""

Run = Callable[[Tensor], Tensor]
"""A program as a function."""


@dataclass(frozen=True)
class Program:
    """A file that was written. takes, gives: what goes in and comes out; difference: the largest from PyTorch that was found."""

    file: str
    takes: str
    gives: str
    difference: float


def file_names(formats: tuple[str, ...] = (ONNX, PT2)) -> list[str]:
    """The files of programs in these formats, as far as a model has both modalities."""
    return [f"{modality}.{kind}" for kind in formats for modality in MODALITIES]


def check_formats(formats: tuple[str, ...]) -> None:
    """Raise UserError, before anything is written, where a format needs packages that are missing."""
    if ONNX in formats:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            check_extra(package, "onnx", f"format={ONNX} needs {package}", f", or format={PT2}, which needs nothing")


def write_programs(folder: Path, model: LIMoE, formats: tuple[str, ...]) -> list[Program]:
    """Write the encoders that a model has, in evaluation mode, on the CPU. ONNX graphs compute in float32, .pt2 in its own dtype.

    Raises UserError for a program that computes something else than the model, and OSError.
    """
    written = []
    for kind in formats:
        computing = copy.deepcopy(model).float() if kind == ONNX else model
        for modality in MODALITIES:
            if has(model, modality):
                written.append(_write(folder / f"{modality}.{kind}", computing, modality))
    return written


def examples(config: ModelConfig, modality: str, count: int, seed: int) -> Tensor:
    """Random inputs of an encoder: normalised images, or texts of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    if modality == "image":
        return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)
    length = config.text_length
    ids = torch.randint(1, config.vocabulary, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= lengths, 0)


@torch.no_grad()
def exported(model: LIMoE, modality: str) -> ExportedProgram:
    """The program of one encoder, for batches of any size."""
    inputs = examples(model.config, modality, 3, seed=0)
    program = torch.export.export(portable_encoder(model, modality), (inputs,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write(path: Path, model: LIMoE, modality: str) -> Program:
    config, program = model.config, exported(model, modality)
    if path.suffix == f".{PT2}":
        torch.export.save(program, path)
        run: Run = program.module()
    else:
        _save_onnx(program, path, modality, float(model.scale()))
        run = _onnx_session(path, modality)
    size = config.image_size
    shape = f"float32 [batch, 3, {size}, {size}]" if modality == "image" else f"int64 [batch, {config.text_length}]"
    difference = _compare(run, model, modality, path.name)
    return Program(
        path.name, f"`{INPUTS[modality]}` {shape}", f"`{OUTPUTS[modality]}` float32 [batch, {config.embedding}]", difference
    )


@torch.no_grad()
def _compare(run: Run, model: LIMoE, modality: str, name: str) -> float:
    """The largest difference between a program's embeddings and the model's. Raises UserError for one beyond rounding."""
    tolerance = TOLERANCE[next(model.heads.parameters()).dtype]
    # Twice at most: in one draw of many thousand tokens, two experts may be so near for a token that rounding decides.
    for draw in range(2):
        difference = 0.0
        for count in BATCHES:
            inputs = examples(model.config, modality, count, seed=1 + draw)
            output = model(**{f"{modality}s": inputs})
            difference = max(difference, float((run(inputs) - getattr(output, f"{modality}s")).abs().max()))
        if difference <= tolerance:
            return difference
    raise UserError(
        f"{name} would differ by {difference:.1e} from the model (more than {tolerance:g}), so that nothing was written: "
        f"please report it; leave format= out"
    )


def _save_onnx(program: ExportedProgram, path: Path, modality: str, scale: float) -> None:
    """Write the graph; its metadata has the scale of the logits."""
    with _quiet():
        graph: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[INPUTS[modality]],
            output_names=[OUTPUTS[modality]],
            dynamic_shapes=({0: "batch"},),
            custom_translation_table={torch.ops.aten.sort.stable: _sorted},
        )
        for node in graph.model.graph.all_nodes():
            node.metadata_props.clear()  # what each was made from, with paths of this machine
        graph.model.metadata_props["logit_scale"] = repr(scale)
        graph.save(path)


def _sorted(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten::sort.stable along the last dimension in ONNX, whose TopK puts the lower index first among equal values."""
    from onnxscript import opset18 as op

    assert dim in (-1, len(values.shape) - 1)
    size = op.Shape(values, start=len(values.shape) - 1)
    return op.TopK(values, size, axis=-1, largest=int(descending), sorted=1)


def _onnx_session(path: Path, modality: str) -> Run:
    """The graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {INPUTS[modality]: inputs.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say to their developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
