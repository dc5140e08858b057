import pytest
import torch

from secateur.criteria import Criterion, criteria, score
from secateur.criteria.registry import Question
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.models.types import ALL_GROUPS, GroupName
from secateur.statistics import observe, statistics_kinds
from tests.hosts import build, images_for


def question(group: GroupName) -> Question:
    return Question(group=group, owner="blocks.1.mlp", weights=None, sums={}, images=1, seed=0)


CASES = [(name, group) for name, which in criteria.items() for group in which.needs]


@pytest.mark.parametrize("name", criteria.names())
def test_criteria_say_what_they_need_and_where_they_come_from(name: str) -> None:
    which = criteria.get(name)
    assert which.title and which.source
    assert set(which.needs) <= set(ALL_GROUPS)
    assert {kind for needs in which.needs.values() for kind in needs} <= set(
        statistics_kinds.names()
    )


@pytest.mark.parametrize(("name", "group"), CASES)
def test_one_number_per_unit_from_no_more_than_it_asked_for(name: str, group: GroupName) -> None:
    model = build("vit")
    which, anatomy = criteria.get(name), read(model)
    statistics = observe(model, as_batches(images_for(model, 6), 3), which.needs[group])
    owners = [b.id for b in anatomy.branches if group == "branch" or group in b.groups]
    (stream,) = anatomy.streams
    whole = [stream.id] if group == "width" else [block.id for block in anatomy.blocks]
    for owner in owners or whole:
        branch = anatomy.branch(owner) if owners else None
        value = score(
            which,
            Question(
                group=group,
                owner=owner,
                weights=None if branch is None else family_of(model).weights(model, branch),
                sums=statistics.about(owner),
                images=statistics.images,
                seed=3,
                stream=family_of(model).stream_weights(model, stream) if group == "width" else None,
            ),
        )
        shape: tuple[int, ...] = (anatomy.width,) if group == "width" else ()
        if branch is not None and group != "branch":
            shape = (branch.shape.size(group),)
            if group in ("qk", "vo"):
                shape = (branch.shape.size("heads"), *shape)
        assert value.shape == shape and value.dtype == torch.float64


def test_groups_that_a_criterion_cannot_score_are_refused() -> None:
    with pytest.raises(UserError, match="'cosine' cannot score 'hidden'; it scores branch, block"):
        score(criteria.get("cosine"), question("hidden"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    broken = Criterion(
        name="broken",
        title="",
        source="",
        needs={"hidden": ()},
        answer=lambda _: torch.tensor([1.0, value]),
    )
    with pytest.raises(UserError, match=r"'broken' gave values .* for blocks\.1\.mlp"):
        score(broken, question("hidden"))


def test_unknown_criteria_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown criterion 'energie'; did you mean 'energy'"):
        criteria.get("energie")
