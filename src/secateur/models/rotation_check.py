"""Check that a model's outputs do not depend on the basis of its stream, before it is rotated.

Norms and linear layers can take a rotation up; what acts on single channels, such as the maximum
over tokens, cannot, and would change the outputs by as much as they are large.
"""

import torch

from secateur.errors import UserError
from secateur.models.caches import copy_of, evaluating
from secateur.models.host import Host
from secateur.models.outputs import outputs_of
from secateur.models.walk_check import TOLERANCES, noise_for

SLACK = 100
"""Rotated weights are rounded anew: outputs may differ by this much more than those of a walk."""


@torch.no_grad()
def require_rotatable(host: Host) -> None:
    """UserError with the reason where the stream of this model cannot be rotated.

    A copy of the model is rotated into a random basis and compared with it on two random images.
    The model is left as it was; one without values (on the meta device) is not tried.
    """
    model, anatomy = host.model, host.anatomy
    host.family.require_rotatable(model)
    images_BCHW = noise_for(model, anatomy)
    if images_BCHW is None:
        return
    copy = copy_of(model)
    random_DD = torch.randn(
        anatomy.width,
        anatomy.width,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    host.family.rotate_(copy, torch.linalg.qr(random_DD).Q.to(images_BCHW.device))
    with evaluating(model), evaluating(copy):
        own, other = outputs_of(model(images_BCHW)), outputs_of(copy(images_BCHW))
    apart, largest = float((own - other).abs().max()), float(own.abs().max())
    if apart > min(0.05, SLACK * TOLERANCES.get(own.dtype, 0.05)) * max(largest, 1e-6):
        raise UserError(
            "the residual stream of this model cannot be rotated: in another basis its outputs "
            f"differ by {apart:.2g}, so something in it, such as max pooling over tokens "
            "(global_pool 'max' or 'avgmax'), acts on single channels of the stream; take a preset "
            "that selects channels, such as magnitude with --groups width."
        )
