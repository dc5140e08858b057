"""plain: a directory that the model's own library opens, where all layers have one shape."""

from pathlib import Path

from torch import nn

from secateur.export import exporters
from secateur.export.parity import Parity
from secateur.storage.directories.plain import save_plain


@exporters.register("plain")
def export_plain(model: nn.Module, out: Path, _input_size: tuple[int, int, int]) -> Parity:
    """Write `model` as transformers or timm would; see `secateur.save` with `plain`."""
    images, apart, largest = save_plain(model, out)
    return Parity(
        path=str(out), max_abs=apart, max_rel=apart / largest, images=images, any_batch=True
    )
