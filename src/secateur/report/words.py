"""Numbers, sizes and budgets as a person reads them."""

from secateur.allocation.budget import CostBudget, Drop, ShapeBudget, parse_budget
from secateur.errors import UserError
from secateur.report.record import BranchRecord, MlpSize, Size

NBSP = "\u00a0"
"""Between a number and its unit, so that no line breaks there."""

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
GROUP_NAMES = {
    "qk": "query/key dims",
    "vo": "value dims",
    "heads": "heads",
    "hidden": "MLP neurons",
    "width": "residual channels",
    "branch": "whole layers",
    "block": "whole blocks",
}
_DROPPED = {"attention": "attention layer", "mlp": "MLP", "layer": "layer", "block": "block"}


def count(number: float) -> str:
    """A count in three digits: 94126080 → "94.1 M"."""
    return count_like(number, number)


def change(dense: float, pruned: float) -> str:
    """Both counts in the unit of the first: "94.1 → 51.7 M"; one alone where nothing changed."""
    if dense == pruned:
        return count(dense)
    before, _, unit = count(dense).partition(NBSP)
    return f"{before} → {count_like(dense, pruned).removesuffix(unit).removesuffix(NBSP)}" + (
        f"{NBSP}{unit}" if unit else ""
    )


def count_like(reference: float, number: float) -> str:
    """A count in the unit that `count` gives the reference: (2.62e6, 109e3) → "0.109 M"."""
    for scale, unit in _SCALES:
        if abs(reference) >= scale * 0.9995:
            value = number / scale
            told = significant(value) if abs(value) >= 0.9995 or not value else f"{value:.3g}"
            return f"{told}{NBSP}{unit}"
    return f"{number:.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share of one in percent: 0.5496 → "55.0 %"; 0 and 100 only for nothing and everything."""
    rounded = round(100 * share, digits)
    if rounded == 100 and share < 1:
        rounded = 100 - 10**-digits
    if rounded == 0 and share > 0:
        rounded = 10**-digits
    return f"{rounded:.{digits}f}{NBSP}%"


def points(value: float) -> str:
    """A difference of two percentages, with its sign."""
    rounded = round(value, 1) or 0.0
    return f"{rounded:+.1f}".replace("-", "−") + f"{NBSP}points"


def milliseconds(value: float) -> str:
    """A time in ms, three digits."""
    return f"{significant(value)}{NBSP}ms"


def duration(seconds: float) -> str:
    """A time as precise as a person needs it: "0.8 s", "42 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 0.005:
        return f"<{NBSP}0.01{NBSP}s"
    if seconds < 0.1:
        return f"{seconds:.2f}{NBSP}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60}{NBSP}s"
    return f"{whole // 3600}{NBSP}h {whole % 3600 // 60}{NBSP}min"


def size_lines(branch: BranchRecord) -> dict[str, str]:
    """What became of a branch's sizes, by group: {"qk": "3×64 → 3×40", "vo": "3×64"}."""
    before, after = _sizes(branch.dense), {} if branch.kept is None else _sizes(branch.kept)
    return {
        group: text if after.get(group, text) == text else f"{text} → {after[group]}"
        for group, text in before.items()
    }


def budget_words(text: str) -> str:
    """A budget as an infinitive: "keep at most 55 % of the MACs"; quoted if not understood."""
    if text.startswith("recipe "):
        return f"follow the recipe “{text.removeprefix('recipe ')}”"
    try:
        budget = parse_budget(text)
    except UserError:
        return f"meet the budget “{text}”"
    if isinstance(budget, CostBudget):
        return f"keep at most {_cost(budget)}"
    if isinstance(budget, ShapeBudget):
        return _shape(budget)
    return f"meet the budget “{text}”"


def listed(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def plural(number: int, noun: str) -> str:
    """ "1 layer", "2 layers"."""
    return f"{number}{NBSP}{noun}" + ("" if number == 1 else "s")


def significant(number: float) -> str:
    """Three digits, more where the whole part needs them."""
    magnitude = abs(number)
    return f"{number:.{0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2}f}"


def _sizes(size: Size) -> dict[str, str]:
    if isinstance(size, MlpSize):
        return {"hidden": f"{size.hidden}"}
    return {"qk": f"{size.heads}×{size.qk}", "vo": f"{size.heads}×{size.vo}"}


def _cost(budget: CostBudget) -> str:
    if budget.relative:
        what = {"macs": "the MACs", "params": "the parameters", "ms": "the latency"}[budget.unit]
        return f"{budget.amount * 100:.4g}{NBSP}% of {what}"
    if budget.unit == "ms":
        return f"{budget.amount:g}{NBSP}ms"
    return count(budget.amount) + {"macs": "MACs", "params": f"{NBSP}parameters"}[budget.unit]


def _shape(budget: ShapeBudget) -> str:
    shares = [
        f"{share * 100:.4g}{NBSP}% of the {GROUP_NAMES.get(group, group)}"
        for group, share in budget.shares.items()
    ]
    drops = [_drop(drop) for drop in budget.drops]
    parts = [f"keep {listed(shares)} in every layer"] if shares else []
    return " and ".join([*parts, f"drop {listed(drops)}"] if drops else parts)


def _drop(drop: Drop) -> str:
    noun = _DROPPED.get(drop.kind, drop.kind)
    if drop.relative:
        return f"{drop.amount * 100:.4g}{NBSP}% of the {noun}s"
    return plural(int(drop.amount), noun)
