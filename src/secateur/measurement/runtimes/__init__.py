"""What runs a model when it is deployed. One file per runtime; each can be measured."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.registry import Registry

Run = Callable[[Tensor], Tensor]
"""One forward pass: images (B, C, H, W) of the prepared shape → outputs (B, classes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """`prepare(model, images, folder)` does all that is done once and returns the pass itself.

    The model is in evaluation mode and on the device of `images`, whose shape every later call
    has. `folder` belongs to this model, so that runtimes can share a converted file.
    `packages` must be installed; `devices` are the types of device it can run on,
    None for all.
    """

    prepare: Callable[[nn.Module, Tensor, Path], Run]
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = ("cpu",)


runtimes: Registry[Runtime] = Registry("runtime", "secateur.measurement.runtimes")


def require(name: str, device: str = "cpu") -> Runtime:
    """The runtime called `name`; UserError if it is unknown, not installed or not for `device`."""
    runtime = runtimes.get(name)
    installed(f"runtime '{name}'", runtime.packages)
    if runtime.devices is not None and torch.device(device).type not in runtime.devices:
        raise UserError(
            f"runtime '{name}' is measured on {' or '.join(runtime.devices)} only, not on "
            f"'{device}'; choose that device or another runtime."
        )
    return runtime


def installed(what: str, packages: tuple[str, ...]) -> None:
    """Raise UserError naming the first of `packages` that is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{what} needs the package '{package}', which is not installed; run "
                "pip install secateur[export]."
            )
