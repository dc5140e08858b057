"""The dense model with its stream in principal components: the same outputs, other channels.

Legend: D residual width.
"""

import torch
from torch import nn

from secateur.data.batches import Batches
from secateur.models.caches import copy_of
from secateur.models.family import Family
from secateur.models.stream import rotatable
from secateur.models.types import Anatomy
from secateur.progress import Progress
from secateur.statistics import observe
from secateur.statistics.registry import STREAM
from secateur.surgery.rotate import principal_basis


def rotated(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    batches: Batches,
    progress: Progress | None = None,
) -> nn.Module:
    """A copy whose stream has channels of descending energy; one pass over the images."""
    turned = rotatable(model, family)
    copy = copy_of(model)

    def on_batch(done: int) -> None:
        if progress is not None:
            progress("rotate", done, batches.images)

    # WHY: in a basis that is none, norms are RMS norms already and the stream has no mean, so
    # what is seen is what will be rotated.
    device = next(copy.parameters()).device
    turned.rotate_(copy, torch.eye(anatomy.width, dtype=torch.float64, device=device))
    seen = observe(copy, batches, {"stream_gram"}, on_batch=on_batch).of("stream_gram", STREAM)
    turned.rotate_(copy, principal_basis(seen["gram"]))
    return copy
