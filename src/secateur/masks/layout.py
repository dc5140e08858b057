"""Building blocks of granularities: gates on one branch, or on several alike.

Letters: L branches, H heads, K query/key dims, V value dims, F hidden neurons, D residual width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.masks.gates import Act, Gate, Priced, Rule, Site
from secateur.masks.granularity import Scope
from secateur.models.types import Branch, GroupName

SITES: dict[str, tuple[Site, ...]] = {"qk": ("query", "key"), "vo": ("context",)}


def table(rows: int, units: int, first: int = 0) -> Tensor:
    """The numbers of `rows` rows of scores, from row `first` on: (rows, units)."""
    return torch.arange(first * units, (first + rows) * units).reshape(rows, units)


def gate(
    scope: Scope,
    name: str,
    group: GroupName,
    rows: int,
    units: int,
    acts: Sequence[Act],
    *,
    rule: Rule = "free",
    minimum: int | None = None,
) -> Gate:
    """A gate whose minimum and alignment are those of its group, unless it may go altogether."""
    aligned = rule == "equal" or rows == 1
    least = scope.limits.minimum.get(group, 1) if minimum is None else minimum
    return Gate(
        name=name,
        group=group,
        rows=rows,
        units=units,
        rule=rule,
        minimum=max(least, 0),
        align=scope.limits.align.get(group, 1) if aligned and minimum is None else 1,
        acts=tuple(acts),
    )


def hidden_gate(scope: Scope, branch: Branch) -> Gate:
    """One score per neuron of an MLP."""
    neurons = branch.shape.size("hidden")
    act = Act(branch=branch.id, site="hidden", takes="hidden", index=torch.arange(neurons))
    return gate(scope, f"{branch.id}.hidden", "hidden", 1, neurons, [act])


def heads_gate(scope: Scope, branch: Branch) -> Gate:
    """One score per head."""
    return gate(
        scope,
        f"{branch.id}.heads",
        "heads",
        1,
        heads := branch.shape.size("heads"),
        [Act(branch=branch.id, site="context", takes="heads", index=table(heads, 1))],
    )


def branch_gate(scope: Scope, branch: Branch) -> Gate:
    """One score for a whole branch, which may go altogether."""
    act = Act(branch=branch.id, site="update", takes="branch", index=torch.tensor(0))
    return gate(scope, f"{branch.id}.branch", "branch", 1, 1, [act], minimum=0)


def width_gates(scope: Scope) -> list[Gate]:
    """One score per channel of each stream that may be made narrower, for the whole model."""
    gates = []
    for stream in scope.streams():
        index = torch.arange(stream.width)
        act = Act(branch=stream.id, site="width", takes="width", index=index)
        gates.append(gate(scope, f"{stream.id}.width", "width", 1, stream.width, [act]))
    return gates


def dims_gate(scope: Scope, branch: Branch, group: GroupName, *, shared: bool) -> Gate:
    """Scores of query/key or value dims: the same dims in all heads, or each head its own.

    Heads with dims of their own keep equally many.
    """
    heads, dims = branch.shape.size("heads"), branch.shape.size(group)
    index = table(1, dims).expand(heads, dims) if shared else table(heads, dims)
    rows = 1 if shared else heads
    acts = [_dims_act(branch, site, group, index) for site in SITES[group]]
    return gate(scope, f"{branch.id}.{group}", group, rows, dims, acts, rule="equal")


def _dims_act(branch: Branch, site: Site, group: GroupName, index: Tensor) -> Act:
    takes: Priced = "qk" if group == "qk" else "vo"
    return Act(branch=branch.id, site=site, takes=takes, index=index)


def free_dims_gate(scope: Scope, branch: Branch, site: Site, group: GroupName) -> Gate:
    """Scores of one of queries, keys or values of every head, each for itself."""
    heads, dims = branch.shape.size("heads"), branch.shape.size(group)
    act = _dims_act(branch, site, group, table(heads, dims))
    name = {"query": "q", "key": "k", "context": "v"}[site]
    return gate(scope, f"{branch.id}.{name}", group, heads, dims, [act], minimum=1)


def rows_gate(scope: Scope, branch: Branch) -> Gate:
    """One score per output of a branch's writer; the stream keeps the channel."""
    act = Act(branch=branch.id, site="update", takes="rows", index=torch.arange(branch.width))
    return gate(scope, f"{branch.id}.out", "branch", 1, branch.width, [act], minimum=1)


def tied_dims_gate(scope: Scope, branch: Branch) -> Gate:
    """One score per head and dim for query, key and value together."""
    heads, dims = branch.shape.size("heads"), equal_dims(branch)
    index = table(heads, dims)
    acts = [_dims_act(branch, site, "qk", index) for site in SITES["qk"]]
    acts.append(_dims_act(branch, "context", "vo", index))
    return gate(scope, f"{branch.id}.qkv", "qk", heads, dims, acts, rule="equal")


def equal_dims(branch: Branch) -> int:
    """Dims per head of a branch whose queries and values have equally many; else UserError."""
    qk, vo = branch.shape.size("qk"), branch.shape.size("vo")
    if qk != vo:
        raise UserError(
            f"{branch.id} has {qk} query/key dims but {vo} value dims per head, which cannot share "
            "one mask; choose another sharing, such as common_count."
        )
    return qk


def across(scope: Scope, name: str, group: GroupName, branches: Sequence[Branch]) -> Gate:
    """One gate over branches alike: each has scores of its own, all keep equally many.

    UserError when the branches have different sizes.
    """
    sizes = {(b.shape.size("heads"), b.shape.size(group)) if group != "hidden" else
             (1, b.shape.size(group)) for b in branches}  # fmt: skip
    if len(sizes) > 1:
        raise UserError(
            f"sharing across blocks needs blocks alike, but '{group}' has several sizes in this "
            "model; choose another sharing, such as common_count."
        )
    heads, units = sizes.pop()
    rows = heads if group in ("qk", "vo") else 1
    acts: list[Act] = []
    for number, branch in enumerate(branches):
        index = table(rows, units, number * rows)
        if group in ("qk", "vo"):
            acts += [_dims_act(branch, site, group, index) for site in SITES[group]]
        elif group == "heads":
            acts.append(Act(branch=branch.id, site="context", takes="heads", index=index.T))
        else:
            acts.append(Act(branch=branch.id, site="hidden", takes="hidden", index=index[0]))
    return gate(scope, name, group, rows * len(branches), units, acts, rule="equal")
