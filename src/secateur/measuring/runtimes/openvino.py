"""OpenVINO on the CPU."""

from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.measuring.runtimes import Run, Runtime, runtimes
from secateur.measuring.runtimes._onnx import PACKAGES, shared_onnx


def prepare(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Run:
    """A model compiled for exactly this shape, with as many threads as torch uses."""
    return compiled(shared_onnx(model, images_BCHW, folder), shape=list(images_BCHW.shape))


def compiled(path: Path, shape: list[int] | None = None) -> Run:
    """Run an ONNX or OpenVINO file, for one shape only or (None) for all that the file takes."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape(shape)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # WHY: the default may compute in half precision, which no other runtime here does.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(images_BCHW: Tensor) -> Tensor:
        outputs = request.infer([images_BCHW.numpy(force=True)], share_inputs=True)
        return torch.from_numpy(outputs[0])

    return run


runtimes.register("openvino")(Runtime(prepare=prepare, packages=("openvino", *PACKAGES)))
