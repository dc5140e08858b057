"""Fold a constant of the residual stream into a bias that is there anyway, so that it is free.

Legend: D residual width.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.places import Place


@torch.no_grad()
def add_to_writer_(place: Place, constant_D: Tensor) -> None:
    """Let the update of a timm-style branch grow by `constant_D`."""
    if place.post_norm:
        add_to_bias_(place.norm, constant_D)
        return
    writer = place.writer
    if place.scale is None:
        add_to_bias_(writer, constant_D)
        return
    gamma_D = place.scale.gamma
    unscaled_D = (constant_D / gamma_D).to(writer.weight.dtype)
    # WHY: a gamma of (almost) zero cannot carry a constant; the scale then moves into the
    # writer's weights, where it belongs just as well.
    if not bool(torch.isfinite(unscaled_D).all()):
        writer.weight.mul_(gamma_D[:, None])
        if writer.bias is not None:
            writer.bias.mul_(gamma_D)
        gamma_D.fill_(1.0)
        unscaled_D = constant_D
    add_to_bias_(writer, unscaled_D)


@torch.no_grad()
def add_to_embedding_(vit: VisionTransformer, constant_D: Tensor) -> None:
    """Let all tokens of a timm VisionTransformer grow by `constant_D` before the first block."""
    if not isinstance(vit.norm_pre, nn.Identity):
        add_to_bias_(vit.norm_pre, constant_D)
        return
    covers_prefix = False
    if vit.pos_embed is not None:
        vit.pos_embed.add_(constant_D.to(vit.pos_embed.dtype))
        covers_prefix = not vit.no_embed_class
    else:
        embed = vit.patch_embed
        normed = not isinstance(embed.norm, nn.Identity)
        add_to_bias_(embed.norm if normed else embed.proj, constant_D)
    if not covers_prefix:
        for token in (vit.cls_token, vit.reg_token, getattr(vit, "dist_token", None)):
            if token is not None:
                token.add_(constant_D.to(token.dtype))


@torch.no_grad()
def add_to_bias_(module: nn.Module, constant_D: Tensor) -> None:
    """Add to the bias of a linear layer or norm, which gets one where it has none.

    Raises UserError for modules that cannot have a bias, such as RMS norms.
    """
    carriers = nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d
    if not isinstance(module, carriers) or module.weight is None:
        raise UserError(
            f"a {type(module).__name__} has no bias to carry the mean of the dropped layer behind "
            "it; use repair 'none' or protect that layer."
        )
    if module.bias is None:
        weight = module.weight
        zeros_D = torch.zeros_like(constant_D, dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros_D, requires_grad=weight.requires_grad)
    module.bias.add_(constant_D.to(module.bias))
