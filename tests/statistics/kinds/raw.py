"""All activations of a branch at once, the slow and simple way."""

from functools import partial

import torch
from torch import Tensor, nn

from secateur.models.family import family_of, read
from secateur.models.taps import attached


@torch.no_grad()
def raw(model: nn.Module, images: Tensor, branch: str, *sites: str) -> list[Tensor]:
    """What passes the sites of a branch when the model sees the images, in double precision."""
    taps = family_of(model).taps(model, read(model).branch(branch))
    seen: dict[str, Tensor] = {}

    def see(site: str, x: Tensor) -> None:
        seen[site] = x.double().clone()

    with attached(model, [(taps[site], partial(see, site)) for site in sites]):
        model(images)
    return [seen[site] for site in sites]
