import pytest
import torch

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.models.weights import BranchWeights, MlpWeights
from secateur.statistics import Statistics, observe, statistics_kinds
from secateur.surgery.cut import cut_, repair_needs
from secateur.surgery.repair import REPAIRS, Repair
from secateur.surgery.replace import mean_update
from tests.contract.cases import GROUPS, plan_for, plan_of_units
from tests.hosts import anatomy_of, build, images_for


def seen(*kinds: str) -> Statistics:
    model = build("vit")
    return observe(model, as_batches(images_for(model, 8), 4), kinds)


def test_nothing_is_asked_for_that_no_repair_uses() -> None:
    assert repair_needs("none", {"hidden", "vo", "heads", "branch", "block", "qk"}) == set()
    assert repair_needs("mean", {"hidden"}) == {"hidden_energies"}
    assert repair_needs("mean", {"vo", "heads"}) == {"context_energies"}
    assert repair_needs("mean", {"qk"}) == set()
    assert repair_needs("least_squares", {"hidden", "heads"}) == {
        "hidden_moments",
        "context_moments",
    }
    assert repair_needs("least_squares", {"branch"}) == {"update_mean"}
    assert repair_needs("mean", {"block"}) == {"update_mean"}


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_repair_needs_no_more_than_it_asked_for(repair: Repair, group: str) -> None:
    model = build("vit")
    plan = plan_for(anatomy_of("vit"), group)
    groups = {g for units in plan.units.values() for g in units}
    if None in plan.shapes.values():
        groups.add("branch")
    needs = repair_needs(repair, set(groups))
    assert needs <= set(statistics_kinds.names())
    cut_(model, plan, seen(*needs) if needs else None, repair)
    assert read(model).shapes == {id: s for id, s in plan.shapes.items() if s is not None}


def test_branches_outside_the_plan_keep_their_very_weights() -> None:
    model = build("vit")
    kept = model.blocks[1].mlp.fc1.weight
    plan = plan_of_units(anatomy_of("vit"), {"blocks.0.mlp": {"hidden": (1, 2, 3)}})
    cut_(model, plan, None, "none")
    assert model.blocks[1].mlp.fc1.weight is kept


def test_evidence_is_of_the_uncut_model() -> None:
    """The order of the cuts does not matter: each branch is repaired from the dense moments."""
    statistics = seen("hidden_moments")
    units = {f"blocks.{i}.mlp": {"hidden": tuple(range(20))} for i in range(3)}
    together, apart = build("vit"), build("vit")
    cut_(together, plan_of_units(anatomy_of("vit"), units), statistics, "least_squares")
    for owner in reversed(units):
        cut_(apart, plan_of_units(read(apart), {owner: units[owner]}), statistics, "least_squares")
    x = images_for(together)
    assert torch.equal(together(x), apart(x))


@pytest.mark.parametrize("kinds", [(), ("hidden_energies",)])
def test_least_squares_without_second_moments_is_refused(kinds: tuple[str, ...]) -> None:
    plan = plan_of_units(anatomy_of("vit"), {"blocks.2.mlp": {"hidden": (0, 1)}})
    with pytest.raises(UserError, match=r"blocks\.2\.mlp: repair 'least_squares' needs evidence"):
        cut_(build("vit"), plan, seen(*kinds) if kinds else None, "least_squares")


def test_drops_without_their_mean_are_refused() -> None:
    plan = plan_for(anatomy_of("vit"), "mlp")
    with pytest.raises(UserError, match=r"blocks\.0\.mlp is dropped without evidence"):
        cut_(build("vit"), plan, seen("hidden_energies"), "mean")
    with pytest.raises(UserError, match=r"blocks\.0\.mlp is dropped without evidence"):
        cut_(build("vit"), plan, None, "mean")


def test_mean_updates_come_from_either_kind() -> None:
    branch = anatomy_of("vit").branches[2]
    a = mean_update(seen("update_mean"), branch)
    b = mean_update(seen("branch_similarity"), branch)
    assert a.dtype == torch.float64
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_mlp_dropped_behind_a_cut_one_adds_its_mean_to_the_cut_bias() -> None:
    """Means of drops and constants of units meet in one bias; neither overwrites the other."""
    statistics = seen("hidden_energies", "update_mean")
    units = plan_of_units(anatomy_of("vit"), {"blocks.0.mlp": {"hidden": (0, 1, 2)}})
    drop = Plan(shapes=units.shapes | {"blocks.1.attn": None}, units=units.units)
    only_cut, both = build("vit"), build("vit")
    cut_(only_cut, units, statistics, "mean")
    cut_(both, drop, statistics, "mean")
    branch = anatomy_of("vit").branch("blocks.0.mlp")
    gained = bias(family_of(both).weights(both, branch)) - bias(
        family_of(only_cut).weights(only_cut, branch)
    )
    mean = mean_update(statistics, anatomy_of("vit").branch("blocks.1.attn"))
    torch.testing.assert_close(gained, mean.float(), rtol=1e-4, atol=1e-6)


def bias(weights: BranchWeights) -> torch.Tensor:
    assert isinstance(weights, MlpWeights) and weights.b2_D is not None
    return weights.b2_D
