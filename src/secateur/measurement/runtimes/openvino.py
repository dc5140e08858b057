"""OpenVINO on the CPU."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.measurement.runtimes import Run, Runtime, runtimes
from secateur.measurement.runtimes._onnx import PACKAGES, joined, shared_onnx


def prepare(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Run:
    """A model compiled for exactly this shape, with as many threads as torch uses."""
    return compiled(shared_onnx(model, images_BCHW, folder), shape=list(images_BCHW.shape))


@cache
def openvino_core() -> Any:
    """The one core of this process."""
    import openvino as ov

    # WHY: every core gives the thread a signal stack when it first compiles, and puts back the one
    # it found when it goes. Cores that go in another order than they came leave a stack that is
    # not mapped, and the next signal with a handler (the end of a data worker) kills the process.
    return ov.Core()


def compiled(path: Path, shape: list[int] | None = None) -> Run:
    """Run an ONNX or OpenVINO file, for one shape only or (None) for all that the file takes."""
    core = openvino_core()
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape(shape)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # WHY: the default may compute in half precision, which no other runtime here does.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    first = model.outputs[0].any_name
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(images_BCHW: Tensor) -> Tensor:
        outputs = request.infer([images_BCHW.numpy(force=True)], share_inputs=True)
        return joined(first, [torch.from_numpy(outputs[i]) for i in range(len(outputs))])

    return run


runtimes.register("openvino")(Runtime(prepare=prepare, packages=("openvino", *PACKAGES)))
