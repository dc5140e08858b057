"""The shape of a criterion: a pure function from weights and sums to one number per unit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.anatomy.stream import StreamWeights
from secateur.anatomy.types import GroupName
from secateur.anatomy.weights import BranchWeights
from secateur.errors import UserError
from secateur.evidence import Sums
from secateur.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a criterion is asked: the worth of the units of one group of one branch.

    `weights` is None for the groups `block` and `width`; for `width`, `stream` has all that
    writes and reads the channels. `seed` differs from branch to branch.
    """

    group: GroupName
    owner: str
    weights: BranchWeights | None
    sums: Mapping[str, Sums]
    images: int
    seed: int
    stream: StreamWeights | None = None


Answer = Callable[[Question], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A named criterion; `needs` lists for each group it can score the kinds of evidence."""

    name: str
    title: str
    source: str
    needs: Mapping[GroupName, tuple[str, ...]]
    answer: Answer


criteria: Registry[Criterion] = Registry("criterion", "secateur.criteria.scores")


def criterion(
    name: str, *, title: str, source: str, needs: Mapping[GroupName, tuple[str, ...]]
) -> Callable[[Answer], Answer]:
    """Register a function as a criterion for the groups in `needs`.

    The function returns one number per unit, higher for units worth keeping: (F,) for `hidden`,
    (H, K) for `qk`, (H, V) for `vo`, (H,) for `heads`, (D,) for `width`, () for `branch` and
    `block`.
    """

    def file(answer: Answer) -> Answer:
        criteria.register(name)(
            Criterion(name=name, title=title, source=source, needs=needs, answer=answer)
        )
        return answer

    return file


def needs_of(which: Criterion, group: GroupName) -> tuple[str, ...]:
    """The kinds of evidence to score a group; UserError when the criterion cannot score it."""
    if group not in which.needs:
        raise UserError(
            f"criterion '{which.name}' cannot score '{group}'; it scores {', '.join(which.needs)}."
        )
    return which.needs[group]


def score(which: Criterion, question: Question) -> Tensor:
    """Ask a criterion; UserError when it cannot score that group or gives non-finite values."""
    needs_of(which, question.group)
    answer = which.answer(question).double()
    if not bool(torch.isfinite(answer).all()):
        raise UserError(
            f"criterion '{which.name}' gave values that are not finite for {question.owner}; "
            "check the weights and the calibration images."
        )
    return answer
