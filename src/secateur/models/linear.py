"""Linear layers that stand in a timm VisionTransformer where branches were.

The module at the path of the branch is a `LinearStandIn`; its norm stays before it and its
LayerScale, made ones, behind it. Legend: D residual width, N tokens.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import Family
from secateur.models.modules import AttentionBlock, LinearStandIn, MlpBlock
from secateur.models.places import PARTS, PartName, Place, is_post_norm, place
from secateur.models.types import Branch, Cost, Joint, Rate, StandInLayer, Stream


@runtime_checkable
class Linearisable(Protocol):
    """What a family does beside `Family` where a linear layer can take the place of a branch."""

    def put_linear_(self, model: nn.Module, branch: Branch, map_DD: Tensor, bias_D: Tensor) -> None:
        """Let the update of a branch be `map_DD` times what it reads, and a constant.

        Also works on the meta device.
        """
        ...


def linearisable(family: Family) -> Linearisable | None:
    """The family as one whose branches can be replaced by linear layers; None for others."""
    return family if isinstance(family, Linearisable) else None


@torch.no_grad()
def put_linear_vit_(
    vit: VisionTransformer, index: int, part: PartName, map_DD: Tensor, bias_D: Tensor
) -> None:
    """Replace a pre-norm branch by a linear layer; its LayerScale becomes ones."""
    block = vit.blocks[index]
    found = place(block, part)
    if found is None or found.post_norm:
        raise UserError(
            f"no linear layer can stand in for blocks.{index}.{part}, which was dropped or has its "
            "norm behind it."
        )
    like = found.writer.weight
    new = LinearStandIn(map_DD.shape[1], map_DD.shape[0], device="meta")
    for name, value in (("weight", map_DD), ("bias", bias_D)):
        tensor = value.detach().to(like.device, like.dtype, copy=True).contiguous()
        setattr(new, name, nn.Parameter(tensor, like.requires_grad))
    if found.scale is not None:
        found.scale.gamma.fill_(1.0)
    setattr(block, part, new.train(block.training))


def stand_ins_of(vit: VisionTransformer, tokens: int) -> tuple[StandInLayer, ...]:
    """The linear layers in place of branches, with their costs."""
    return tuple(
        StandInLayer(id=f"blocks.{index}.{part}", block=index, cost=_cost(found, tokens))
        for index, part, found in _places(vit)
        if found.is_stand_in
    )


def linear_rates(stand_ins: tuple[StandInLayer, ...], width: int, tokens: int) -> tuple[Rate, Cost]:
    """What stand-ins add to the ends at the present width, and per pair of channels."""
    total = sum((layer.cost for layer in stand_ins), Cost())
    pair = Cost(params=len(stand_ins), macs=tokens * len(stand_ins))
    square = pair * (width * width)
    per_width = Cost(params=(total.params - square.params) // width)
    return Rate(base=square, per_width=per_width), pair


def linear_joints(pair: Cost, streams: tuple[Stream, ...]) -> tuple[Joint, ...]:
    """The prices that grow with the square of the width."""
    if pair == Cost():
        return ()
    return tuple(Joint(first=s.id, second=s.id, per_pair=pair) for s in streams)


def since_branch(vit: VisionTransformer, index: int, part: PartName) -> list[nn.Module]:
    """The stand-ins between a branch and the one before it, each alone as a module."""
    here = (index, PARTS.index(part))
    return _trailing(vit, [at for at in _places(vit) if (at[0], PARTS.index(at[1])) < here])


def after_last(vit: VisionTransformer) -> list[nn.Module]:
    """The stand-ins behind the last branch."""
    return _trailing(vit, list(_places(vit)))


def alone(block: nn.Module, part: PartName) -> nn.Module:
    """A block without its other part."""
    kept = AttentionBlock if part == "attn" else MlpBlock
    return kept(block, post_norm=is_post_norm(block)).train(block.training)


def _trailing(vit: VisionTransformer, places: list[tuple[int, PartName, Place]]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for index, part, where in reversed(places):
        if not where.is_stand_in:
            break
        found.append(alone(vit.blocks[index], part))
    return found[::-1]


def _places(vit: VisionTransformer) -> Iterator[tuple[int, PartName, Place]]:
    for index, block in enumerate(vit.blocks):
        for part in PARTS:
            if found := place(block, part):
                yield index, part, found


def _cost(found: Place, tokens: int) -> Cost:
    params = sum(p.numel() for m in (found.module, *found.vectors) for p in m.parameters())
    return Cost(params=params, macs=tokens * found.writer.weight.numel())
