"""Express the residual stream in another orthonormal basis.

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
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.derived.anatomy import why_not_narrow
from secateur.models.derived.keyless import carries, rows_with_bias
from secateur.models.derived.members import Members, members_of, reading_once
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Linears, steps_of
from secateur.models.norms import HeldNorm, affine, can_hold, centres, uncentred_norm
from secateur.models.statement import Statement

SELECT = "take a preset that selects channels, such as magnitude with --groups width"


def why_not_rotate(stated: Statement, model: nn.Module) -> str | None:
    """Why the stream of this model cannot be rotated; None if it can."""
    steps = steps_of(stated, model)
    if reason := why_not_narrow(stated, model, steps):
        return reason
    members = members_of(stated, model, 0, steps)
    if members.vectors:
        return "a norm writes its embedding, and no weight behind a norm could rotate what it gives"
    if any(step.residual.norm_behind for step in steps):
        return "its norms stand behind the branches, where they write the stream"
    if any(step.kind == "linear" for step in steps):
        return "linear layers stand in for some of its layers; make it narrower before these go"
    if not members.heads:
        return "it has no classifier, so its features would come out rotated"
    heads = [*members.heads.values()]
    norms = [optional(owner, path) for owner, path, _ in _readings(model, members, heads)]
    if norms[-1] is None:
        return "its classifier reads the stream without a norm"
    found = [norm for norm in norms if norm is not None and can_hold(norm)]
    if len(found) < len(norms):
        return "one of its norms is neither a LayerNorm nor an RMS norm with a scale"
    if any(isinstance(norm, HeldNorm) and norm.centre for norm in found):
        return "channels were selected from it already, which its norms count as constants"
    if len({centres(norm) for norm in found}) > 1:
        return "some of its norms subtract the mean and some do not"
    return None


@torch.no_grad()
def rotate_(stated: Statement, model: nn.Module, basis_DD: Tensor) -> None:
    """Express the stream in the basis of these orthonormal columns; outputs stay the same.

    The model must be one that `why_not_rotate` has nothing against. UserError where a norm has a
    shift that neither its readers nor it itself can carry.
    """
    members = members_of(stated, model, 0)
    basis_DD = basis_DD.double().to(members.writer.weight.device)
    into_DD = basis_DD.T
    with reading_once(members.heads, members.width) as heads:
        readings = list(_readings(model, members, heads))
        if any(centres(owner.get_submodule(path)) for owner, path, _ in readings):
            into_DD = into_DD - into_DD.mean(1, keepdim=True)
        for owner, path, readers in readings:
            _read_rotated_(owner, path, readers, basis_DD)
    _write_(members.writer, into_DD)
    for table in members.tables.values():
        table.copy_(table.double() @ into_DD.T)
    for step in members.steps:
        scaled_DD = into_DD
        if (scale := step.scale) is not None:
            scaled_DD = into_DD * scale.double()
            scale.fill_(1.0)
        _write_(step.writer, scaled_DD)


def _readings(
    model: nn.Module, members: Members, heads: list[nn.Linear]
) -> Iterator[tuple[nn.Module, str, Linears]]:
    """What each norm belongs to, its path there, and the layers that read what it gives."""
    for step in members.steps:
        yield step.owner, step.residual.norm or "", step.readers
    yield model, [*members.tail, ""][max(len(members.tail) - 1, 0)], [*heads]


def _write_(writer: nn.Module, into_DD: Tensor) -> None:
    """Let a linear layer or convolution write `into_DD` times what it wrote."""
    weight = writer.get_parameter("weight")
    weight.copy_((into_DD @ weight.double().flatten(1)).view_as(weight))
    if writer.bias is not None:
        bias = writer.get_parameter("bias")
        bias.copy_(into_DD @ bias.double())


def _read_rotated_(owner: nn.Module, path: str, readers: Linears, basis_DD: Tensor) -> None:
    """Put an RMS norm in place of a norm; scale, shift and rotation go into the readers."""
    norm = owner.get_submodule(path)
    weight_D, bias_D = affine(norm)
    new = uncentred_norm(norm)
    if carried := all(carries(reader) for reader in readers):
        for reader in readers:
            bias, weight = reader.get_parameter("bias"), reader.get_parameter("weight")
            bias.copy_(bias.double() + rows_with_bias(reader, weight.double() @ bias_D))
    if new.bias is not None and not carried:
        if bool(((weight_D == 0) & (bias_D != 0)).any()):
            raise UserError(
                f"'{path}' has a shift where its scale is zero, and layers without a bias read it, "
                f"so its stream cannot be rotated; {SELECT}."
            )
        new.bias.copy_(basis_DD.T @ torch.where(bias_D == 0, 0.0, bias_D / weight_D))
    for reader in readers:
        weight = reader.get_parameter("weight")
        weight.copy_((weight.double() * weight_D) @ basis_DD)
    owner.set_submodule(path, new)
