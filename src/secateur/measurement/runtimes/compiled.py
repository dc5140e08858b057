"""torch.compile: one graph without breaks, its kernels fused by inductor."""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.measurement.runtimes import Run, Runtime, runtimes
from secateur.measurement.runtimes._quiet import quiet

VARIANTS = 1000
"""Models and shapes that may be compiled in one process; torch's own default is 8."""


def prepare(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Run:
    """Compile for exactly this shape; UserError where a CPU model finds no C++ compiler."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    if images_BCHW.device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            "runtime 'compile' needs a C++ compiler, and none was found; install g++ or clang++, "
            "or name one in the environment variable CXX."
        )
    run: Run = torch.compile(model, fullgraph=True, dynamic=False)
    # WHY: torch counts variants per forward function, which all models of a class share, and
    # compiles at the first call.
    limit = torch._dynamo.config.patch(recompile_limit=VARIANTS)
    with torch.inference_mode(), quiet(), limit:
        run(images_BCHW)
    return run


runtimes.register("compile")(Runtime(prepare=prepare, devices=("cpu", "cuda")))
