"""Express the residual stream of a timm VisionTransformer in another orthonormal basis.

A LayerNorm is n(x) = w (Mx / rms(Mx)) + b with M = I - 11^T / D. Rotations pass through the root
mean square alone, so (SliceGPT, ICLR 2024, arXiv 2401.15024) everything else goes elsewhere first:
M into all that writes, w and b into the readers, LayerScale into the writers. With the basis Q then

    z = Q^T M x,   writers Q^T M diag(gamma) W,   readers W diag(w) Q,   biases + W b

Norms keep a scale of ones and a shift of zeros, and LayerScales become ones, so that shapes, costs
and what can be trained stay as they were. Where a reader has no bias, the shift stays in the norm
as Q^T (b / w). Legend: D residual width, F inputs of a writer, R rows of a reader.
"""

from collections.abc import Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.narrowing import HEADS, TOKENS, branch_readers, why_not
from secateur.models.norms import HeldNorm, affine, can_hold, centres, uncentred_norm
from secateur.models.places import PARTS, place

Reading = tuple[nn.Module, str, list[nn.Linear]]
"""Where a norm hangs, under which name, and the linear layers that read what it gives."""


def why_not_rotate(vit: VisionTransformer) -> str | None:
    """Why the stream of this model cannot be rotated; None if it can."""
    if reason := why_not(vit):
        return reason
    if not isinstance(vit.norm_pre, nn.Identity) or not isinstance(
        vit.patch_embed.norm, nn.Identity
    ):
        return "a norm writes its embedding, and no weight behind a norm could rotate what it gives"
    places = [found for block in vit.blocks for part in PARTS if (found := place(block, part))]
    if any(found.post_norm for found in places):
        return "its norms stand behind the branches, where they write the stream"
    if any(found.is_stand_in for found in places):
        return "linear layers stand in for some of its layers; make it narrower before these go"
    if not any(isinstance(getattr(vit, name, None), nn.Linear) for name in HEADS):
        return "it has no classifier, so its features would come out rotated"
    if all(isinstance(norm, nn.Identity) for norm in (vit.norm, vit.fc_norm)):
        return "its classifier reads the stream without a norm"
    norms = [getattr(parent, name) for parent, name, _ in _readings(vit)]
    if not all(can_hold(norm) for norm in norms):
        return "one of its norms is neither a LayerNorm nor an RMS norm with a scale"
    if any(isinstance(norm, HeldNorm) and norm.centre for norm in norms):
        return "channels were selected from it already, which its norms count as constants"
    if len({centres(norm) for norm in norms}) > 1:
        return "some of its norms subtract the mean and some do not"
    return None


@torch.no_grad()
def rotate_vit_(vit: VisionTransformer, basis_DD: Tensor) -> None:
    """Express the stream in the basis of these orthonormal columns; outputs stay the same.

    The model must be one that `why_not_rotate` has nothing against. UserError where a norm has a
    shift that neither its readers nor it itself can carry.
    """
    readings = list(_readings(vit))
    basis_DD = basis_DD.double().to(vit.patch_embed.proj.weight.device)
    into_DD = basis_DD.T
    if any(centres(getattr(parent, name)) for parent, name, _ in readings):
        into_DD = into_DD - into_DD.mean(1, keepdim=True)
    for parent, name, readers in readings:
        _read_rotated_(parent, name, readers, basis_DD)
    _write_(vit.patch_embed.proj, into_DD)
    for name in TOKENS:
        if (table := getattr(vit, name, None)) is not None:
            table.copy_(table.double() @ into_DD.T)
    for block in vit.blocks:
        for part in PARTS:
            if found := place(block, part):
                scaled_DD = into_DD
                if found.scale is not None:
                    scaled_DD = into_DD * found.scale.gamma.double()
                    found.scale.gamma.fill_(1.0)
                _write_(found.writer, scaled_DD)


def _readings(vit: VisionTransformer) -> Iterator[Reading]:
    for block in vit.blocks:
        for number, part in enumerate(PARTS, start=1):
            if found := place(block, part):
                yield block, f"norm{number}", branch_readers(found)
    heads = [head for name in HEADS if isinstance(head := getattr(vit, name, None), nn.Linear)]
    last = "norm" if isinstance(vit.fc_norm, nn.Identity) else "fc_norm"
    yield vit, last, heads


def _write_(writer: nn.Module, into_DD: Tensor) -> None:
    """Let a linear layer or convolution write `into_DD` times what it wrote."""
    weight = writer.get_parameter("weight")
    weight.copy_((into_DD @ weight.double().flatten(1)).view_as(weight))
    if writer.bias is not None:
        bias = writer.get_parameter("bias")
        bias.copy_(into_DD @ bias.double())


def _read_rotated_(
    parent: nn.Module, name: str, readers: list[nn.Linear], basis_DD: Tensor
) -> None:
    """Put an RMS norm in place of a norm; scale, shift and rotation go into the readers."""
    norm = getattr(parent, name)
    weight_D, bias_D = affine(norm)
    new = uncentred_norm(norm)
    if carried := all(reader.bias is not None for reader in readers):
        for reader in readers:
            reader.bias.copy_(reader.bias.double() + reader.weight.double() @ bias_D)
    if new.bias is not None and not carried:
        if bool(((weight_D == 0) & (bias_D != 0)).any()):
            raise UserError(
                f"'{name}' has a shift where its scale is zero, and layers without a bias read it, "
                "so its stream cannot be rotated; take a preset that selects channels, such as "
                "magnitude with --groups width."
            )
        new.bias.copy_(basis_DD.T @ torch.where(bias_D == 0, 0.0, bias_D / weight_D))
    for reader in readers:
        reader.weight.copy_((reader.weight.double() * weight_D) @ basis_DD)
    setattr(parent, name, new)
