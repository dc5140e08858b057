"""Every group of every owner is asked with a seed of its own, its weights and its statistics."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from secateur.criteria.ask import ask, seed_of
from secateur.criteria.registry import Criterion, Question
from secateur.errors import UserError
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.models.types import Anatomy, GroupName
from secateur.statistics import Statistics
from tests.hosts import anatomy_of, build

GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads", "hidden", "branch", "block", "width")


class Settings(BaseModel):
    """Choices of the criterion below."""

    factor: float = 1.0


def recording(asked: list[Question]) -> Criterion:
    def answer(question: Question) -> Tensor:
        asked.append(question)
        return torch.ones(())

    needs: dict[GroupName, tuple[str, ...]] = {group: () for group in GROUPS if group != "heads"}
    return Criterion(name="a", title="a", source="b", needs=needs, answer=answer, settings=Settings)


def owners(anatomy: Anatomy) -> Iterator[tuple[GroupName, str]]:
    for branch in anatomy.branches:
        for group in (*branch.groups, "branch"):
            yield group, branch.id  # type: ignore[misc]
    yield from (("block", block.id) for block in anatomy.blocks)
    yield from (("width", stream.id) for stream in anatomy.streams)


def test_no_two_questions_of_a_run_share_a_seed_and_runs_share_none() -> None:
    anatomy = anatomy_of("vit")
    keys = list(owners(anatomy))
    seeds = [seed_of(anatomy, group, owner, seed) for seed in (0, 1) for group, owner in keys]
    assert len(set(seeds)) == 2 * len(keys)


def test_a_question_has_all_that_the_criterion_may_read() -> None:
    model, asked, settings = build("vit"), list[Question](), Settings(factor=2)
    statistics = Statistics(images=3, tokens=5, sums={"x": {"blocks.1.mlp": {"n": torch.ones(1)}}})
    for group, owner in (("hidden", "blocks.1.mlp"), ("block", "blocks.0"), ("width", "stream")):
        ask(
            recording(asked),
            host_of(model),
            group,  # type: ignore[arg-type]
            owner,
            statistics,
            seed=4,
            settings=settings,
        )
    assert all(question.settings is settings and question.images == 3 for question in asked)
    hidden, block, width = asked
    assert hidden.weights is not None and "x" in hidden.sums
    assert block.weights is None and block.stream is None
    assert width.stream is not None and width.seed == 4 * 100_003 + 70_001


def test_a_layer_keeps_its_seed_when_others_are_gone() -> None:
    model, anatomy, asked = build("vit"), anatomy_of("vit"), list[Question]()
    family = family_of(model)
    nothing = Statistics(images=0, tokens=0)
    smaller = build("vit")
    family.drop_(smaller, {"blocks.0.attn"})
    for it, numbered in ((model, None), (smaller, anatomy)):
        ask(
            recording(asked),
            host_of(it),
            "branch",
            "blocks.1.mlp",
            nothing,
            seed=1,
            settings=None,
            numbered=numbered,
        )
    assert asked[0].seed == asked[1].seed == 100_003 + 3 * 7 + 4


def test_a_group_that_the_criterion_cannot_score_is_refused() -> None:
    model = build("vit")
    with pytest.raises(UserError, match="cannot score 'heads'"):
        ask(
            recording([]),
            host_of(model),
            "heads",
            "blocks.0.attn",
            Statistics(images=0, tokens=0),
            seed=0,
            settings=None,
        )
