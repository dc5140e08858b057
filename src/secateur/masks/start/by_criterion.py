"""Where scores start: the order of a criterion, by what a unit costs.

Letters: R rows, U units per row, H heads, K query/key dims, V value dims.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import Criterion, needs_of
from secateur.masks.gates import Act, Gate
from secateur.masks.masks import Left
from secateur.masks.pricing import Pricing, unit_prices
from secateur.models.host import Host
from secateur.models.types import GroupName
from secateur.statistics import Statistics

LAST_CHANNEL = 0.75
"""The middle of the worths of channels where others start from plans."""
STREAM_CRITERION = "magnitude"
"""Scores the channels of a stream where the criterion cannot."""


def criterion_groups(gates: Iterable[Gate]) -> set[GroupName]:
    """The groups whose units a criterion has to score for these gates, but for streams."""
    return {takes for gate in gates for _, takes in _scored(gate)} - {"width"}


def _scored(gate: Gate) -> Iterator[tuple[Act, GroupName]]:
    """The acts of a gate on units that a criterion can score."""
    for act in gate.acts:
        if act.takes != "rows":
            yield act, act.takes


def start_needs(which: Criterion, gates: Iterable[Gate]) -> set[str]:
    """The kinds of statistics that the criterion asks for; UserError if it cannot score a group."""
    groups = criterion_groups(gates)
    if "width" in which.needs and any(_takes(gate) == "width" for gate in gates):
        groups |= {"width"}
    return {need for group in groups for need in needs_of(which, group)}


def _takes(gate: Gate) -> str:
    return gate.acts[0].takes


def starting_worths(
    host: Host,
    gates: Sequence[Gate],
    pricing: Pricing,
    statistics: Statistics,
    which: Criterion,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The worth of every unit (R, U) of every gate, evenly spread over [-1, 1] by rank.

    Ranked is what the criterion gives per cost that the unit adds, over all gates together; the
    sum over what a score governs, where that is more than one unit. Channels of a stream that the
    criterion does not know are ranked among themselves by magnitude; outputs of writers, which
    none knows, lie in the middle.
    """
    anatomy = host.anatomy
    takes: dict[str, set[GroupName]] = {}
    for act, group in (pair for gate in gates for pair in _scored(gate)):
        takes.setdefault(act.branch, set()).add(group)
    answers: dict[tuple[str, GroupName], Tensor] = {}
    for branch in anatomy.branches:
        for group in sorted(takes.get(branch.id, ())):
            found = ask(which, host, group, branch.id, statistics, seed=seed, settings=None)
            answers[branch.id, group] = found.cpu()
    if any(_takes(gate) == "width" for gate in gates):
        answers |= _stream_answers(host, statistics, which, seed)
    dense = Left(shapes=dict(anatomy.shapes), widths=dict(anatomy.widths))
    prices = unit_prices(pricing, gates, {}, dense)
    values = {gate.name: _value(gate, answers) / _floor(prices[gate.name]) for gate in gates}
    apart = "width" not in which.needs
    return _even(
        {g.name: values[g.name] for g in gates if not (apart and _takes(g) == "width")},
        {g.name for g in gates if _takes(g) == "rows"},
    ) | _even({g.name: values[g.name] for g in gates if apart and _takes(g) == "width"}, set())


def average(
    host: Host, gates: Sequence[Gate], answers: Mapping[tuple[str, GroupName], Tensor]
) -> dict[str, Tensor]:
    """Worths (R, U) of gates from those of units in [-1, 1]: the mean over what a score governs.

    Units without an answer are worth most. Channels of a stream are spread by magnitude over the
    upper half, since nothing takes over from them; outputs of writers lie in the middle.
    """
    worths: dict[str, Tensor] = {}
    streams: dict[str, Tensor] = {}
    for gate in gates:
        if _takes(gate) == "width":
            which = criteria.get(STREAM_CRITERION)
            nothing = Statistics(images=0, tokens=0)
            streams = streams or _even(
                {
                    other.name: _value(other, _stream_answers(host, nothing, which, 0))
                    for other in gates
                    if _takes(other) == "width"
                },
                set(),
            )
            worths[gate.name] = LAST_CHANNEL + (1 - LAST_CHANNEL) * streams[gate.name]
            continue
        total, parts = (torch.zeros(gate.rows * gate.units, dtype=torch.float64) for _ in range(2))
        for act, group in _scored(gate):
            answer = answers.get((act.branch, group), torch.tensor(1.0)).double().cpu()
            spread = (act.part * answer).expand(act.index.shape).reshape(-1)
            total.index_add_(0, act.index.reshape(-1), spread)
            ones = torch.full_like(spread, act.part)
            parts.index_add_(0, act.index.reshape(-1), ones)
        mean = torch.where(parts > 0, total / parts.clamp(min=1e-12), 0.0)
        worths[gate.name] = mean.reshape(gate.rows, gate.units)
    return worths


def _stream_answers(
    host: Host, statistics: Statistics, which: Criterion, seed: int
) -> dict[tuple[str, GroupName], Tensor]:
    """The worth of every channel of every stream."""
    chosen = which if "width" in which.needs else criteria.get(STREAM_CRITERION)
    answers: dict[tuple[str, GroupName], Tensor] = {}
    for stream in host.anatomy.streams:
        found = ask(chosen, host, "width", stream.id, statistics, seed=seed, settings=None)
        answers[stream.id, "width"] = found.cpu()
    return answers


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
