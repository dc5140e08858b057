"""Budgets in the user's own units, as strings.

`50% macs`, `40% params`, `2.0 GMACs`, `3M params`, `6.5 ms`, `2x faster`: what is kept of a cost.
`50% qk, 70% hidden`: that share of every such group is kept, in every layer.
`drop 4 attention`, `drop 2 mlp`, `drop 25% blocks`, `drop 3 layers`: whole layers removed.
Shares and drops may be combined with commas; a cost stands alone. `lossless`: only what changes no
output.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from secateur.errors import QUOTED, UserError, short
from secateur.models.types import GroupName
from secateur.registry import unknown

CostUnit = Literal["macs", "params", "ms"]
DropKind = Literal["attention", "mlp", "layer", "block"]

LOSSLESS = "lossless"
SHARE_GROUPS = ("qk", "vo", "heads", "hidden", "width")
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_DROPS: dict[str, DropKind] = {
    "attention": "attention",
    "attentions": "attention",
    "attn": "attention",
    "mlp": "mlp",
    "mlps": "mlp",
    "layer": "layer",
    "layers": "layer",
    "branch": "layer",
    "branches": "layer",
    "block": "block",
    "blocks": "block",
}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_UNITS = [
    "macs",
    "params",
    "ms",
    "faster",
    "attention",
    "mlp",
    "layers",
    "blocks",
    *SHARE_GROUPS,
    LOSSLESS,
]
HELP = (
    "write for example '50% macs', '3M params', '2.0 GMACs', '6.5 ms', '2x faster', "
    "'drop 4 attention', 'drop 25% blocks', '50% qk, 70% hidden' or 'lossless'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBudget:
    """At most `amount` of a cost: absolute, or a share (0…1] of the dense model's."""

    unit: CostUnit
    amount: float
    relative: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Whole layers or blocks to remove: a count, or a share (0…1) of those there are."""

    kind: DropKind
    amount: float
    relative: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeBudget:
    """What is kept of each group, in every layer, and what is dropped altogether."""

    shares: dict[str, float] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SizesBudget:
    """Every size settled, by owner and group, as a recipe gives them; others stay.

    Without sizes, only what changes no output is done.
    """

    sizes: dict[tuple[str, GroupName], int] = field(default_factory=dict)


Budget = CostBudget | ShapeBudget | SizesBudget


def parse_budget(text: str) -> Budget:
    """Parse a budget string; UserError with the known units when it cannot be understood."""
    if len(text) > QUOTED:
        raise UserError(f"budget '{short(text)}' is too long; {HELP}.")
    if text.strip().lower() == LOSSLESS:
        return SizesBudget()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1:
        cost = _parse_cost(parts[0])
        if cost is not None:
            return cost
    shares: dict[str, float] = {}
    drops: list[Drop] = []
    for part in parts:
        if _parse_cost(part) is not None:
            raise UserError(f"budget '{text}': a cost such as '{part}' stands alone.")
        if drop := _parse_drop(part, text):
            drops.append(drop)
            continue
        group, share = _parse_share(part, text)
        if group in shares:
            raise UserError(f"budget '{text}' names '{group}' twice; name each group once.")
        shares[group] = share
    return ShapeBudget(shares=shares, drops=tuple(drops))


def _parse_cost(text: str) -> CostBudget | None:
    lowered = text.lower()
    if match := re.fullmatch(rf"{_NUMBER}\s*(%|[kmgt]?)\s*flops?", lowered):
        what = "% macs" if match[2] == "%" else f" {match[2].upper()}MACs"
        half = "" if match[2] == "%" else ", or half of it"
        raise UserError(
            f"budget '{text}' is in FLOPs, which some count as multiply-adds and others as twice "
            f"as many; name multiply-adds: '{match[1]}{what}'{half}."
        )
    if match := re.fullmatch(rf"{_NUMBER}\s*%\s*(macs|params|ms)", lowered):
        share = _share(float(match[1]), text)
        return CostBudget(unit=_unit(match[2]), amount=share, relative=True)
    if match := re.fullmatch(rf"{_NUMBER}\s*([kmgt]?)\s*(macs|params)", lowered):
        amount = _positive(float(match[1]) * _SCALES[match[2]], text)
        return CostBudget(unit=_unit(match[3]), amount=amount, relative=False)
    if match := re.fullmatch(rf"{_NUMBER}\s*ms", lowered):
        return CostBudget(unit="ms", amount=_positive(float(match[1]), text), relative=False)
    if match := re.fullmatch(rf"{_NUMBER}\s*x\s*faster", lowered):
        factor = float(match[1])
        if factor < 1:
            raise UserError(f"budget '{text}' asks for a slower model; use a factor above 1.")
        return CostBudget(unit="ms", amount=1 / factor, relative=True)
    return None


def _parse_drop(part: str, text: str) -> Drop | None:
    match = re.fullmatch(rf"drop\s+{_NUMBER}\s*(%?)\s*(\w+)", part.lower())
    if match is None:
        return None
    if match[3] not in _DROPS:
        raise UserError(f"budget '{text}': {unknown('kind of layer', match[3], list(_DROPS))}")
    relative = match[2] == "%"
    amount = float(match[1]) / (100 if relative else 1)
    if not relative and amount != int(amount):
        raise UserError(f"budget '{text}': whole layers are dropped; give a whole number.")
    if relative and amount >= 1:
        raise UserError(f"budget '{text}' drops every {match[3]}; keep at least one.")
    return Drop(kind=_DROPS[match[3]], amount=amount, relative=relative)


def _parse_share(part: str, text: str) -> tuple[str, float]:
    match = re.fullmatch(rf"{_NUMBER}\s*%\s*(\w+)", part.lower())
    if match is not None and match[2] in SHARE_GROUPS:
        return match[2], _share(float(match[1]), text)
    words = re.findall(r"[a-zA-Z]+", part)
    hint = unknown("unit", words[-1], _UNITS) + " " if words and words[-1] not in _UNITS else ""
    raise UserError(f"budget '{text}' cannot be understood: {hint}{HELP[0].upper()}{HELP[1:]}.")


def _share(percent: float, text: str) -> float:
    if not 0 < percent <= 100:
        raise UserError(
            f"budget '{text}': a percentage says what is kept, so it lies above 0 and at most 100."
        )
    return percent / 100


def _positive(amount: float, text: str) -> float:
    if amount <= 0:
        raise UserError(f"budget '{text}' is zero; nothing can be left of a model.")
    return amount


def _unit(text: str) -> CostUnit:
    return "macs" if text == "macs" else "params" if text == "params" else "ms"
