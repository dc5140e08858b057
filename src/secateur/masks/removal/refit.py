"""Once masks are removed, writers are refitted front to back towards the dense model's stream.

The takeover (`secateur.masks.removal.takeover`) sees every layer by itself, on the stream that it
had; errors of all layers then add up. Here each writer also makes up for what the layers before it
lack, as in the `spectral` method (`secateur.surgery.sequential`), but no unit is chosen anew.
"""

import torch
from torch import nn

from secateur.allocation.types import Plan
from secateur.data.batches import Batches
from secateur.masks.removal.takeover import agreed
from secateur.methods.spectral import batches_to_stream, token_weights
from secateur.models.caches import evaluating
from secateur.models.host import host_of
from secateur.surgery.sequential import SequentialSettings, refit_front_to_back_


def refit_(smaller: nn.Module, dense: nn.Module, plan: Plan, batches: Batches, seed: int) -> None:
    """Refit in place the writers of `smaller`, which `plan` cut out of a model like `dense`."""
    host = host_of(dense)
    device = next(dense.parameters()).device
    channels = {
        stream.id: torch.tensor(plan.units[stream.id]["width"], device=device)
        for stream in host.anatomy.streams
        if stream.id in plan.units
    }
    # WHY evaluating: dropout would pass for something that the stream lacks.
    with evaluating(dense, smaller):
        weights = token_weights(host, batches, seed)
        # WHY: a new bias would be a parameter that the budget does not know of.
        settings = SequentialSettings(token_weights=weights, new_biases=False)
        some = batches_to_stream(host.anatomy, batches)
        refit_front_to_back_(smaller, dense, some, settings, channels)
    with torch.no_grad():
        for weight in smaller.parameters():
            weight.copy_(agreed(weight))
