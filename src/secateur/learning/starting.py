"""Where scores start: the order of a criterion, by what a unit costs.

Letters: R rows, U units per row, H heads, K query/key dims, V value dims.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.anatomy.family import Family
from secateur.anatomy.types import ALL_GROUPS, GroupName
from secateur.criteria.registry import Criterion, Question, needs_of, score
from secateur.evidence import Evidence
from secateur.learning.gates import Act, Gate
from secateur.learning.pricing import Pricing, shapes_of_masks, unit_prices


def criterion_groups(gates: Iterable[Gate]) -> set[GroupName]:
    """The groups whose units a criterion has to score for these gates."""
    return {takes for gate in gates for _, takes in _scored(gate)}


def _scored(gate: Gate) -> Iterator[tuple[Act, GroupName]]:
    """The acts of a gate on units that a criterion can score."""
    for act in gate.acts:
        if act.takes != "rows":
            yield act, act.takes


def start_needs(which: Criterion, gates: Iterable[Gate]) -> set[str]:
    """The kinds of evidence that the criterion asks for; UserError if it cannot score a group."""
    return {need for group in criterion_groups(gates) for need in needs_of(which, group)}


def starting_worths(
    model: nn.Module,
    family: Family,
    gates: Sequence[Gate],
    pricing: Pricing,
    evidence: Evidence,
    which: Criterion,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The worth of every unit (R, U) of every gate, evenly spread over [-1, 1] by rank.

    Ranked is what the criterion gives per cost that the unit adds, over all gates together; the
    sum over what a score governs, where that is more than one unit. Outputs of writers, which no
    criterion knows, lie in the middle.
    """
    anatomy = pricing.anatomy
    takes: dict[str, set[GroupName]] = {}
    for act, group in (pair for gate in gates for pair in _scored(gate)):
        takes.setdefault(act.branch, set()).add(group)
    answers: dict[tuple[str, GroupName], Tensor] = {}
    for number, branch in enumerate(anatomy.branches):
        weights = family.weights(model, branch)
        for group in sorted(takes.get(branch.id, ())):
            question = Question(
                group=group,
                owner=branch.id,
                weights=weights,
                sums=evidence.about(branch.id),
                images=evidence.images,
                seed=seed * 100_003 + number * 7 + ALL_GROUPS.index(group),
            )
            answers[branch.id, group] = score(which, question).cpu()
    shapes = shapes_of_masks(pricing, {})
    prices = unit_prices(pricing, gates, {}, shapes)
    values = {gate.name: _value(gate, answers) / _floor(prices[gate.name]) for gate in gates}
    return _even(values, {gate.name for gate in gates if gate.acts[0].takes == "rows"})


def _value(gate: Gate, answers: Mapping[tuple[str, GroupName], Tensor]) -> Tensor:
    """The sum of the criterion over what each score governs (R, U), fp64."""
    total = torch.zeros(gate.rows * gate.units, dtype=torch.float64)
    for act, group in _scored(gate):
        answer = answers[act.branch, group]
        if group == "heads":
            answer = answer[:, None]
        spread = (act.part * answer).expand(act.index.shape)
        total.index_add_(0, act.index.reshape(-1), spread.reshape(-1))
    return total.reshape(gate.rows, gate.units)


def _floor(prices_RU: Tensor) -> Tensor:
    return prices_RU.double().clamp(min=1e-12)


def _even(values: Mapping[str, Tensor], unknown: set[str]) -> dict[str, Tensor]:
    """Ranks over all gates together, from -1 (least) to 1; 0 for gates in `unknown`."""
    known = [name for name in values if name not in unknown]
    worths = {name: torch.zeros_like(value) for name, value in values.items()}
    if not known:
        return worths
    flat = torch.cat([values[name].reshape(-1) for name in known])
    ranks = flat.argsort(stable=True).argsort(stable=True).double()
    even = 2 * ranks / max(1, len(flat) - 1) - 1
    parts = even.split([values[name].numel() for name in known])
    for name, part in zip(known, parts, strict=True):
        worths[name] = part.reshape(values[name].shape)
    return worths
