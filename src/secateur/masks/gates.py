"""Gates: scores that decide which units stay, where each score acts, and how many it must keep.

A unit of a site is live when every gate that acts on it keeps it: masks multiply.
Letters: R rows, U units per row, H heads, K query/key dims, V value dims, F hidden neurons,
D residual width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.models.types import GroupName

Site = Literal["query", "key", "context", "hidden", "update", "width"]
Rule = Literal["free", "equal"]
Priced = Literal["qk", "vo", "heads", "hidden", "branch", "width", "rows"]
"""What an act takes away; `rows` are outputs of a branch's writer, which stay in the stream."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Act:
    """Where a gate acts: `index` names for each unit of the site the score that governs it.

    `index` has the shape of the site, or one that broadcasts to it: (H, K), (H, V), (F,), (D,);
    (H, 1) for whole heads, () for a whole branch. Scores are numbered row by row. Of a stream, its
    id stands in place of a branch's, and the site is `width`.
    """

    branch: str
    site: Site
    takes: Priced
    index: Tensor

    @property
    def part(self) -> float:
        """The share of what a unit costs and is worth that lies at this site.

        Half of a query/key dim is the query's, half the key's.
        """
        return 0.5 if self.takes == "qk" else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """One table of scores (R, U).

    Rule `free`: every score decides for itself; at least `minimum` units are kept in all. Rule
    `equal`: every row keeps its best units, equally many, at least `minimum` per row. Counts are
    multiples of `align` (or everything).
    """

    name: str
    group: GroupName
    rows: int
    units: int
    rule: Rule
    minimum: int
    align: int
    acts: tuple[Act, ...]

    @property
    def most(self) -> int:
        """The count at which everything is kept."""
        return self.units if self.rule == "equal" else self.rows * self.units


def allowed(gate: Gate, count: int) -> int:
    """The largest count that the gate may have, not above `count` unless its minimum is."""
    if count >= gate.most:
        return gate.most
    step = gate.align
    least = -(-gate.minimum // step) * step
    return min(max(count // step * step, least), gate.most)


def count_above(gate: Gate, margin_RU: Tensor, threshold: float = 0.0) -> int:
    """How many units (per row under the rule `equal`) have a margin above the threshold.

    Never rises with the threshold. Rows that must be equal keep the mean of what they would keep.
    """
    live = int((margin_RU > threshold).sum())
    if gate.rule == "equal":
        live = int(live / gate.rows + 0.5)
    return allowed(gate, live)


def keep(gate: Gate, margin_RU: Tensor, count: int) -> Tensor:
    """The mask (R, U) of the `count` best units, per row or of all; ties go to the lower index."""
    table = margin_RU if gate.rule == "equal" else margin_RU.reshape(1, -1)
    best = table.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    mask = torch.zeros_like(table, dtype=torch.bool).scatter_(1, best, True)
    return mask.reshape(margin_RU.shape)


def kept_now(gate: Gate, margin_RU: Tensor) -> Tensor:
    """The mask (R, U) of the units with a margin above zero, as far as the gate's rule allows."""
    return keep(gate, margin_RU, count_above(gate, margin_RU))
