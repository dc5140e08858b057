"""Files for other runtimes, each compared with its model before it appears. One file per target.

Reading such a file needs neither secateur nor the library that the model came from.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from secateur.export.parity import Parity, check_file
from secateur.models.family import read, require_plain
from secateur.registry import Registry

Exporter = Callable[[nn.Module, Path, tuple[int, int, int]], Parity]
"""Writes a model, for images of one size (C, H, W), to a file."""

exporters: Registry[Exporter] = Registry("export target", "secateur.export")


def export(
    model: nn.Module,
    to: str,
    out: Path,
    input_size: tuple[int, int, int] | None = None,
    *,
    overwrite: bool = False,
) -> Parity:
    """Write `model` to the file `out` for the target `to` and return the difference of outputs.

    `input_size` (C, H, W) is needed only for models of no known family. An existing file is
    replaced only with `overwrite`. UserError for an unknown target, a missing package or a place
    that cannot be written; RuntimeError, and no file, if the outputs differ.
    """
    exporter = exporters.get(to)
    require_plain(model)
    check_file(Path(out), overwrite=overwrite)
    return exporter(model, Path(out), input_size or read(model).input_size)
