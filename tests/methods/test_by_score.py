"""From scores to a plan: seeds, kept units and the predicted loss."""

import pytest

from secateur.allocation.types import Plan
from secateur.errors import UserError
from secateur.methods.by_score import criteria_needs
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.verbs.prune import prune
from tests.hosts import anatomy_of, build, images_for

FINE = {"hidden": 1, "qk": 1, "vo": 1, "heads": 1}


def plan(budget: str, preset: str = "random", **options: object) -> Plan:
    model = build("vit")
    images = images_for(model, 4)
    options = {"align": FINE, "minimum": FINE} | options
    return prune(model, images, budget, preset=preset, **options).plan  # type: ignore[arg-type]


def test_chance_depends_on_the_seed_and_differs_between_groups_and_layers() -> None:
    first, again, other = (plan("50% qk, 50% vo, 50% hidden", seed=s) for s in (1, 1, 2))
    assert first.units == again.units
    assert first.units != other.units
    for branch in ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn"):
        assert first.units[branch]["qk"] != first.units[branch]["vo"]
    hidden = [first.units[f"blocks.{i}.mlp"]["hidden"] for i in range(3)]
    assert len(set(hidden)) == 3


@pytest.mark.parametrize("preset", ["magnitude", "energy", "taylor", "vbp", "layer_drop"])
def test_equal_requests_give_equal_plans(preset: str) -> None:
    group = "branch" if preset == "layer_drop" else "hidden"
    assert plan("75% macs", preset, groups=[group]) == plan("75% macs", preset, groups=[group])


def test_the_predicted_loss_sums_the_scores_of_what_goes() -> None:
    model = build("vit")
    result = prune(model, images_for(model, 4), "50% hidden", preset="energy")
    chosen = {entry.key: result.plan.shapes[entry.owner] for entry in result.candidates}
    losses = [entry.loss(chosen[entry.key].size("hidden")) for entry in result.candidates]  # type: ignore[union-attr]
    assert result.plan.predicted_loss == pytest.approx(sum(losses)) and min(losses) > 0


def test_only_what_criteria_ask_for_is_collected() -> None:
    def needs(budget: str, preset: str) -> set[str]:
        asked = check(PruneRequest(budget, preset=preset))
        return criteria_needs(resolve(asked, anatomy_of("vit")))

    assert needs("50% hidden", "magnitude") == set()
    assert needs("50% hidden", "energy") == {"hidden_energies"}
    assert needs("50% qk, drop 1 attention", "energy") == {"logit_moments", "branch_similarity"}
    assert needs("60% macs", "taylor") == {"attention_gates", "mlp_gates"}
    assert needs("50% width", "random") == set()
    with pytest.raises(UserError, match="'energy' cannot score 'width'"):
        needs("50% width", "energy")
