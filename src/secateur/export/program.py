"""torch.export: the graph as a .pt2 file for torch itself, in Python or C++."""

from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.export import exporters
from secateur.export.parity import Parity, written
from secateur.measurement.runtimes import Run
from secateur.measurement.runtimes._onnx import traced
from secateur.measurement.runtimes._quiet import quiet
from secateur.models.outputs import outputs_of


@exporters.register("torch")
def export_program(model: nn.Module, out: Path, input_size: tuple[int, int, int]) -> Parity:
    """Write `model` to a .pt2 file, for torch.export.load."""
    return written(model, out, input_size, suffix=".pt2", write=_write, load=_load)


def _write(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
    program, any_batch = traced(model, images_BCHW)
    with quiet():
        torch.export.save(program, path)
    return any_batch


def _load(path: Path) -> Run:
    with quiet():
        module = torch.export.load(path).module()
    return lambda images_BCHW: outputs_of(module(images_BCHW))
