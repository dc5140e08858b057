"""ONNX: one file that ONNX Runtime, OpenVINO, TensorRT and others read."""

from pathlib import Path

from torch import nn

from secateur.export import exporters
from secateur.export.parity import Parity, written
from secateur.measurement.runtimes import installed
from secateur.measurement.runtimes._onnx import PACKAGES, to_onnx
from secateur.measurement.runtimes.onnxruntime import session


@exporters.register("onnx")
def export_onnx(model: nn.Module, out: Path, input_size: tuple[int, int, int]) -> Parity:
    """Write `model` to an .onnx file with input "images" and output "logits" or "features"."""
    installed("export to onnx", (*PACKAGES, "onnxruntime"))
    return written(model, out, input_size, suffix=".onnx", write=to_onnx, load=session)
