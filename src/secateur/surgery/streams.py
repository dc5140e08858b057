"""The streams of many batches, advanced branch by branch.

They are lists with one tensor (B, N, D) per batch and take images × tokens × width floats, so the
caller bounds the number of images. Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from secateur.data.batches import Batches
from secateur.models.hook_points import attached
from secateur.models.host import Host
from secateur.models.types import Branch

Streams = list[Tensor]


@torch.no_grad()
def embed_all(host: Host, batches: Batches) -> Streams:
    """The stream before the first branch, one tensor (B, N, D) per batch."""
    return [host.embed(batch.images_BCHW) for batch in batches]


def advance(host: Host, branch: Branch, streams: Iterable[Tensor]) -> Iterator[Tensor]:
    """The streams after one branch, batch by batch."""
    return (after_BND for after_BND, _ in advance_seen(host, branch, streams, ()))


def advance_(host: Host, branch: Branch, streams: Streams) -> None:
    """Put the streams after one branch in the place of those before it, batch by batch."""
    for number, after_BND in enumerate(advance(host, branch, streams)):
        streams[number] = after_BND


@torch.no_grad()
def advance_seen(
    host: Host, branch: Branch, streams: Iterable[Tensor], sites: tuple[str, ...]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The streams after one branch, each with the quantities that passed at `sites` on the way."""
    hook_points = host.hook_points(branch) if sites else {}
    step = host.through(branch)
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            seen[site] = x

        return see

    # WHY: the hook points name modules of the whole model; `through` shares those modules, so a
    # hook on the model also fires when the branch runs alone.
    with attached(host.model, [(hook_points[site], keep(site)) for site in sites]):
        for x_BND in streams:
            seen.clear()
            yield step(x_BND), dict(seen)
