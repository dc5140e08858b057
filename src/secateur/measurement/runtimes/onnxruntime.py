"""ONNX Runtime on the CPU."""

from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.measurement.runtimes import Run, Runtime, runtimes
from secateur.measurement.runtimes._onnx import BATCH, INPUT, PACKAGES, joined, shared_onnx


def prepare(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Run:
    """A session for exactly this shape, with as many threads as torch uses."""
    return session(shared_onnx(model, images_BCHW, folder), batch=len(images_BCHW))


def session(path: Path, batch: int | None = None) -> Run:
    """Run an ONNX file, for `batch` images only or (None) for as many as the file takes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # WHY: threads that keep spinning after a run would take time from the next model's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if batch is not None:
        options.add_free_dimension_override_by_name(BATCH, batch)
    engine = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    first = engine.get_outputs()[0].name

    def run(images_BCHW: Tensor) -> Tensor:
        outputs = engine.run(None, {INPUT: images_BCHW.numpy(force=True)})
        return joined(first, [torch.from_numpy(output) for output in outputs])

    return run


runtimes.register("onnxruntime")(Runtime(prepare=prepare, packages=("onnxruntime", *PACKAGES)))
