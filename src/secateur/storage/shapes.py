"""From a dense model to the shapes of a pruned one, and back to a list of what differs."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from secateur.errors import UserError, short
from secateur.models.derived.fold import give_bias_
from secateur.models.family import read
from secateur.models.host import Host
from secateur.models.types import Anatomy, AttentionShape, MlpShape, Shapes, Widths
from secateur.models.weights import AttentionWeights, MlpWeights


def shapes_of(model: nn.Module, dense: Anatomy) -> Shapes:
    """The shape in `model` of every branch of its dense anatomy; None for a dropped one."""
    present = read(model).shapes
    if extra := sorted(set(present) - set(dense.shapes)):
        raise UserError(
            f"{extra[0]} is no branch of the dense model this one is said to come from."
        )
    return {branch.id: present.get(branch.id) for branch in dense.branches}


def widths_of(model: nn.Module, dense: Anatomy) -> Widths:
    """The widths in `model` of the streams of its dense anatomy that are narrower there."""
    present = read(model).widths
    widths = {stream.id: present.get(stream.id, stream.width) for stream in dense.streams}
    return {s.id: widths[s.id] for s in dense.streams if widths[s.id] != s.width}


def resize_(
    host: Host,
    shapes: Shapes,
    widths: Mapping[str, int] | None = None,
    stand_ins: Collection[str] = (),
) -> None:
    """Give a dense model, on any device, these shapes, with uninitialised weights.

    Linear layers take the places of the dropped branches in `stand_ins`.

    Streams that are missing in `widths` keep theirs. Raises UserError when the branches, their
    kinds or the streams are not those of `models`.
    """
    model, family, anatomy = host.model, host.family, host.anatomy
    if odd := sorted(set(shapes) ^ set(anatomy.shapes)):
        raise UserError(f"branch {short(odd[0])} is not in both the file and its base model.")
    for branch in anatomy.branches:
        shape = shapes[branch.id]
        if shape is None or shape == branch.shape:
            continue
        like = host.weights(branch)
        if isinstance(like, AttentionWeights) and isinstance(shape, AttentionShape):
            host.assign_(branch, AttentionWeights.empty(shape, like))
        elif isinstance(like, MlpWeights) and isinstance(shape, MlpShape):
            host.assign_(branch, MlpWeights.empty(shape, like))
        else:
            raise UserError(f"the shape of branch {branch.id} is not one of its kind.")
    dropped = {branch_id for branch_id, shape in shapes.items() if shape is None}
    if odd := sorted(set(stand_ins) - dropped):
        raise UserError(
            f"a linear layer is said to stand in for {short(odd[0])}, which was not dropped."
        )
    for branch_id in stand_ins:
        if not family.one_stream:
            raise UserError(f"no linear layer can stand in for {branch_id} in {family.title}.")
        branch = anatomy.branch(branch_id)
        empty_DD = next(model.parameters()).new_empty(branch.width, branch.width)
        family.put_linear_(model, branch, empty_DD, empty_DD[0])
    family.drop_(model, dropped - set(stand_ins))
    if odd := sorted(set(widths or {}) - set(anatomy.widths)):
        raise UserError(
            f"the base model has no stream '{short(odd[0])}' that can be made narrower."
        )
    for stream in anatomy.streams:
        width = (widths or {}).get(stream.id, stream.width)
        if width > stream.width:
            raise UserError(f"stream '{stream.id}' is wider than the {stream.width} of its base.")
        if width < stream.width:
            family.narrow_(model, stream, torch.arange(width))


def added_biases(model: nn.Module, resized: nn.Module) -> list[str]:
    """Modules of `model` that have a bias which the dense model, resized, lacks."""
    extra = set(model.state_dict()) - set(resized.state_dict())
    return sorted(name.removesuffix(".bias") for name in extra if name.endswith(".bias"))


def add_biases_(
    model: nn.Module, paths: Iterable[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give modules without a bias one, uninitialised; UserError where there is no place for it.

    `tensors` are those of the file: they say how long the bias behind an activation is.
    """
    for path in paths:
        give_bias_(model, path, tensors)
