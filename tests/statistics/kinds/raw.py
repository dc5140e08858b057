"""All activations of a branch at once, the slow and simple way."""

from functools import partial

import torch
from torch import Tensor, nn

from secateur.models.family import family_of, read
from secateur.models.hook_points import attached


@torch.no_grad()
def raw(model: nn.Module, images: Tensor, branch: str, *sites: str) -> list[Tensor]:
    """What passes the sites of a branch when the model sees the images, in double precision."""
    hook_points = family_of(model).hook_points(model, read(model).branch(branch))
    seen: dict[str, Tensor] = {}

    def see(site: str, x: Tensor) -> None:
        seen[site] = x.double().clone()

    with attached(model, [(hook_points[site], partial(see, site)) for site in sites]):
        model(images)
    return [seen[site] for site in sites]
