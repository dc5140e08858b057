"""The shape of a criterion: a pure function from weights and sums to one number per unit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from secateur.errors import UserError
from secateur.models.stream import StreamWeights
from secateur.models.types import Anatomy, GroupName
from secateur.models.weights import BranchWeights
from secateur.registry import Registry, unknown
from secateur.statistics import Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The input of a criterion: one group of one branch, with its weights and statistics.

    `sums` holds the sums of each kind of statistic in the criterion's needs, over `images` images.
    `weights` is None for the groups `block` and `width`; for `width`, `stream` holds the readers
    and writers of the channels. `seed` differs from branch to branch. `settings` is an instance of
    the criterion's settings, None for the defaults.
    """

    group: GroupName
    owner: str
    weights: BranchWeights | None
    sums: Mapping[str, Sums]
    images: int
    seed: int
    stream: StreamWeights | None = None
    settings: BaseModel | None = None


Answer = Callable[[Question], Tensor]
Needs = Mapping[GroupName, tuple[str, ...]]
NeedsWith = Callable[[BaseModel], Needs]
Check = Callable[[BaseModel | None, Anatomy, GroupName], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A named criterion; `needs` lists the kinds of statistic for each group that it can score.

    A criterion with choices names a pydantic model of them as `settings`, which presets fill;
    `needs_with(settings)` gives the needs of settings that change them. `check(settings, anatomy,
    group)` raises UserError for a model that the criterion or its settings do not suit.
    """

    name: str
    title: str
    source: str
    needs: Needs
    answer: Answer
    settings: type[BaseModel] | None = None
    needs_with: NeedsWith | None = None
    check: Check | None = None


criteria: Registry[Criterion] = Registry("criterion", "secateur.criteria.scores")


def criterion(
    name: str,
    *,
    title: str,
    source: str,
    needs: Needs,
    settings: type[BaseModel] | None = None,
    needs_with: NeedsWith | None = None,
    check: Check | None = None,
) -> Callable[[Answer], Answer]:
    """Register a function as a criterion for the groups in `needs`.

    The function returns one score per unit, higher for units to keep: (F,) for `hidden`,
    (H, K) for `qk`, (H, V) for `vo`, (H,) for `heads`, (D,) for `width`, () for `branch` and
    `block`.
    """

    def file(answer: Answer) -> Answer:
        criteria.register(name)(
            Criterion(
                name=name,
                title=title,
                source=source,
                needs=needs,
                answer=answer,
                settings=settings,
                needs_with=needs_with,
                check=check,
            )
        )
        return answer

    return file


def needs_of(
    which: Criterion, group: GroupName, settings: BaseModel | None = None
) -> tuple[str, ...]:
    """The kinds of statistics to score a group; UserError when the criterion cannot score it."""
    if group not in which.needs:
        raise UserError(
            f"criterion '{which.name}' cannot score '{group}'; it scores {', '.join(which.needs)}."
        )
    if settings is not None and which.needs_with is not None:
        return which.needs_with(settings)[group]
    return which.needs[group]


def settings_of(which: Criterion, values: Mapping[str, object]) -> BaseModel | None:
    """The criterion's settings from plain values; UserError naming the one that is wrong."""
    if which.settings is None:
        if values:
            raise UserError(f"criterion '{which.name}' has no settings, so leave them out.")
        return None
    try:
        return which.settings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(which.settings.model_fields)
            raise UserError(
                f"criterion '{which.name}': {unknown('setting', where, known)}"
            ) from error
        raise UserError(f"criterion '{which.name}': setting '{where}': {first['msg']}.") from error


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
