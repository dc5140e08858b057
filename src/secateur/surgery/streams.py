"""Run a model branch by branch on residual streams that are kept between branches.

Memory is one list of streams of all images (images × tokens × width floats) per model; the caller
bounds the number of images. Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.models.family import Family
from secateur.models.taps import attached
from secateur.models.types import Branch

Streams = list[Tensor]


@torch.no_grad()
def embed_all(model: nn.Module, family: Family, batches: Batches) -> Streams:
    """The stream before the first branch, one tensor (B, N, D) per batch."""
    return [family.embed(model, batch.images_BCHW) for batch in batches]


@torch.no_grad()
def advance(
    model: nn.Module, family: Family, branch: Branch, streams: Iterable[Tensor]
) -> Iterator[Tensor]:
    """The streams after one branch, batch by batch."""
    step = family.through(model, branch)
    for x_BND in streams:
        yield step(x_BND)


@torch.no_grad()
def advance_(model: nn.Module, family: Family, branch: Branch, streams: Streams) -> None:
    """Put the streams after one branch in the place of those before it, batch by batch."""
    step = family.through(model, branch)
    for number, x_BND in enumerate(streams):
        streams[number] = step(x_BND)


@torch.no_grad()
def advance_seen(
    model: nn.Module,
    family: Family,
    branch: Branch,
    streams: Iterable[Tensor],
    sites: tuple[str, ...],
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The streams after one branch, each with what passed at `sites` on the way."""
    taps = family.taps(model, branch)
    step = family.through(model, branch)
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            seen[site] = x

        return see

    # WHY: the taps name modules of the whole model; `through` shares those modules, so a hook on
    # the model also fires when the branch runs alone.
    with attached(model, [(taps[site], keep(site)) for site in sites]):
        for x_BND in streams:
            seen.clear()
            yield step(x_BND), dict(seen)
