"""torch as it is: one kernel after the other."""

from pathlib import Path

from torch import Tensor, nn

from secateur.measurement.runtimes import Run, Runtime, runtimes


def prepare(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Run:
    """The model itself."""
    return model


runtimes.register("eager")(Runtime(prepare=prepare, devices=None))
