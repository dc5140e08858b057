"""How much work an analysis is, known before it begins, so that the time left can be told."""

from collections.abc import Callable, Sequence

from secateur.ablation.candidates import nearest_sizes
from secateur.allocation.candidates import Limits, allowed_sizes
from secateur.models.types import Anatomy, GroupName


def steps_of(
    anatomy: Anatomy,
    groups: Sequence[GroupName],
    shares: Sequence[float],
    points: int,
    pairs_of: int,
    counts: Callable[[int], list[int]],
) -> float:
    """Steps of the stream that an analysis takes, those of pairs as if these were spread evenly.

    `counts` says how many of so many parts a series leaves out at each of its points; `points` are
    those at which all layers are made smaller. Every branch is a step, and what comes before a
    change is run once.
    """
    places = {branch.id: place for place, branch in enumerate(anatomy.branches)}
    length = len(places)
    rest = [length - 1 - place for place in range(length)]
    blocks = [b.branches for b in anatomy.blocks if b.branches]
    found: float = sum(rest) + length
    found += sum(rest[max(map(places.__getitem__, own))] for own in blocks) + length
    kinds = [branch.kind for branch in anatomy.branches]
    parts = [(kinds.count("attention"), 1.0), (kinds.count("mlp"), 1.0), (length, 1.0)]
    for total, size in (*parts, (len(blocks), length / max(1, len(blocks)))):
        found += sum(length - size * count for count in counts(total)) if total else 0
    chosen = [round((i + 0.5) * length / max(1, pairs_of)) for i in range(min(pairs_of, length))]
    for number, place in enumerate(chosen):
        found += chosen[-1] - place + sum(length - 1 - other for other in chosen[number + 1 :])
    for branch in anatomy.branches:
        for group in set(groups) & set(branch.groups):
            sizes = allowed_sizes(branch, group, Limits())
            measured = nearest_sizes(sizes, branch.shape.size(group), shares)
            found += len(measured) * (1 + rest[places[branch.id]])
    return found + length * (1 + points)
