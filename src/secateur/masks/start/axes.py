"""Attention in its principal axes before masks are learned: the same outputs, other dims."""

from collections.abc import Iterable, Sequence

import torch

from secateur.masks.gates import Gate
from secateur.models.host import Host
from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights
from secateur.statistics import Statistics
from secateur.surgery.axes import turn_query_key, turn_value

NEEDS: dict[GroupName, str] = {"qk": "logit_moments", "vo": "context_moments"}


def axes_needs(gates: Iterable[Gate]) -> set[str]:
    """The kinds of statistics that turning asks for, by what the gates mask."""
    return {NEEDS[group] for _, group in _masked(gates)}


@torch.no_grad()
def turn_attention_(host: Host, gates: Sequence[Gate], statistics: Statistics) -> None:
    """Turn, in place, the dims of every attention layer on which a gate acts dim by dim."""
    masked = _masked(gates)
    for branch in host.anatomy.branches:
        turned: set[GroupName] = {group for owner, group in masked if owner == branch.id}
        if not turned:
            continue
        weights, sums = host.weights(branch), statistics.about(branch.id)
        assert isinstance(weights, AttentionWeights)
        if "qk" in turned:
            weights = turn_query_key(weights, sums["logit_moments"])
        if "vo" in turned:
            weights = turn_value(weights, sums["context_moments"])
        host.assign_(branch, weights)


def _masked(gates: Iterable[Gate]) -> set[tuple[str, GroupName]]:
    """Branches with the groups of their dims that gates mask one by one."""
    found: set[tuple[str, GroupName]] = set()
    for act in (act for gate in gates for act in gate.acts):
        if act.takes in ("qk", "vo"):
            found.add((act.branch, "qk" if act.site in ("query", "key") else "vo"))
    return found
