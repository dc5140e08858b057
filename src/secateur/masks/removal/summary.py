"""What masks claim beside what is really removed, before and after the search."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from secateur.allocation.candidates import Limits
from secateur.allocation.types import Plan
from secateur.masks.gates import Gate, allowed, keep
from secateur.masks.granularity import Granularity
from secateur.masks.masks import Masks, masks_of, plan_of_masks
from secateur.masks.pricing import masked_cost
from secateur.models.types import Anatomy, Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """The dense model, what is left if all that masks claim were gone, and what is really left."""

    dense: Cost
    masked: Cost
    left: Cost

    @property
    def masked_percent(self) -> float:
        """Parameters that masks claim, in percent of the dense model's."""
        return 100 * (1 - self.masked.params / self.dense.params)

    @property
    def removed_percent(self) -> float:
        """Parameters really removed, in percent of the dense model's."""
        return 100 * (1 - self.left.params / self.dense.params)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with both shares of the parameters."""
        return asdict(self) | {
            "masked_percent": self.masked_percent,
            "removed_percent": self.removed_percent,
        }


def compression(anatomy: Anatomy, masks: Masks, plan: Plan) -> Compression:
    """What these masks claim beside what the model of this plan lacks."""
    return Compression(
        dense=anatomy.reference,
        masked=masked_cost(anatomy, masks),
        left=anatomy.cost(plan.shapes, plan.widths),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Removability:
    """What a strategy could remove at most; known before any training."""

    sharing: str
    title: str
    removal: str
    scores: int
    most: Compression

    def text(self) -> str:
        """Two sentences for people."""
        most = self.most
        return (
            f"Sharing {self.sharing}: {self.title[0].lower()}{self.title[1:]}; {self.scores:,} "
            f"scores. {self.removal} At most {most.masked_percent:.1f} % of the parameters can be "
            f"masked and {most.removed_percent:.1f} % removed."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"most": self.most.to_json()}


def removability(
    which: Granularity, gates: Sequence[Gate], anatomy: Anatomy, limits: Limits
) -> Removability:
    """What is left when every gate of a strategy keeps as little as it may."""
    least = {
        gate.name: keep(gate, torch.zeros(gate.rows, gate.units), allowed(gate, 0))
        for gate in gates
    }
    masks = masks_of(gates, least)
    plan = plan_of_masks(anatomy, masks, limits)
    return Removability(
        sharing=which.name,
        title=which.title,
        removal=which.removal,
        scores=sum(gate.rows * gate.units for gate in gates),
        most=compression(anatomy, masks, plan),
    )
