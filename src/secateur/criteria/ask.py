"""The one place that asks a criterion about the units of a model."""

from pydantic import BaseModel
from torch import Tensor

from secateur.criteria.registry import Criterion, Question, score
from secateur.models.host import Host
from secateur.models.types import ALL_GROUPS, Anatomy, GroupName
from secateur.statistics import Statistics


def ask(
    which: Criterion,
    host: Host,
    group: GroupName,
    owner: str,
    statistics: Statistics,
    *,
    seed: int,
    settings: BaseModel | None,
    numbered: Anatomy | None = None,
) -> Tensor:
    """The worth of the units of a group of a branch, block or stream, shaped as in `criterion`.

    `seed` is that of the run, from which every group of every owner gets one of its own; where the
    model has lost layers, `numbered` is the anatomy with all of them, so that seeds stay.
    `settings` are the criterion's own, None for the default ones. UserError as from `score`.
    """
    stream = weights = None
    if group == "width":
        found = next(stream for stream in host.anatomy.streams if stream.id == owner)
        stream = host.family.stream_weights(host.model, found)
    elif group != "block":
        weights = host.weights(host.anatomy.branch(owner))
    question = Question(
        group=group,
        owner=owner,
        weights=weights,
        sums=statistics.about(owner),
        images=statistics.images,
        seed=seed_of(numbered or host.anatomy, group, owner, seed),
        stream=stream,
        settings=settings,
    )
    return score(which, question)


def seed_of(anatomy: Anatomy, group: GroupName, owner: str, seed: int) -> int:
    """A seed of its own for a group of an owner, in a run with `seed`."""
    base = seed * 100_003
    if group == "width":
        return base + 70_001 + [stream.id for stream in anatomy.streams].index(owner)
    if group == "block":
        return base + 50_021 + next(b.index for b in anatomy.blocks if b.id == owner)
    number = [branch.id for branch in anatomy.branches].index(owner)
    return base + number * 7 + ALL_GROUPS.index(group)
