"""Active energy against hand-computed values, and the preset from end to end."""

import copy

import torch
from torch import Tensor

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.statistics import observe, statistics_kinds
from secateur.surgery.cut import repair_needs
from secateur.verbs.prune import prune
from tests.hosts import build, images_for


def worth(kind: str, group: str, seen: list[dict[str, Tensor]]) -> Tensor:
    sums: dict[str, Tensor] = {}
    for each in seen:
        statistics_kinds.get(kind).update(sums, each)
    question = Question(
        group=group, owner="x", weights=None, sums={kind: sums}, images=1, seed=0
    )  # fmt: skip
    return score(criteria.get("active_energy"), question)


def test_energy_times_the_share_of_active_tokens() -> None:
    # The root mean square of the 8 values is sqrt(32/8) = 2, so eps is 0.02.
    x_BNF = torch.tensor([[[4.0, 2.0], [0.01, 2.0], [0.0, 2.0], [0.01, 2.0]]])
    x_BNF[0, 0, 0] = (32 - 16 - 2 * 0.01**2) ** 0.5
    found = worth("hidden_activity", "hidden", [{"hidden": x_BNF}])
    torch.testing.assert_close(found, torch.tensor([4.0 * 0.25, 4.0 * 1.0]).double())


def test_the_threshold_does_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 50.0])[:, None, None]
    x_BNF = torch.randn(2, 40, 3, generator=generator).pow(3) * scales
    whole = worth("hidden_activity", "hidden", [{"hidden": x_BNF}])
    parts = worth("hidden_activity", "hidden", [{"hidden": x[None]} for x in x_BNF])
    torch.testing.assert_close(whole, parts)


def test_joint_energy_of_queries_and_centred_keys() -> None:
    q_BNHK = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    k_BNHK = torch.tensor([13.0, 19.0]).view(1, 2, 1, 1)
    # Centred keys are -3 and 3: ((1*3)^2 + (2*3)^2) / 2.
    found = worth("logit_energies", "qk", [{"query": q_BNHK, "key": k_BNHK}])
    assert found.tolist() == [[22.5]]


@torch.no_grad()
def test_the_preset_end_to_end() -> None:
    model = build("vit")
    before = copy.deepcopy(model.state_dict())
    fine = {"qk": 2, "hidden": 4}
    calibration = images_for(model, 64, seed=1)
    result = prune(
        model, calibration, "50% qk, 50% hidden", preset="corp", align=fine, minimum=fine
    )
    bare = prune(
        model, calibration, "50% qk, 50% hidden", preset="corp", repair="none", align=fine,
        minimum=fine,
    )  # fmt: skip
    assert result.plan == bare.plan
    assert {s.qk for s in result.plan.shapes.values() if hasattr(s, "qk")} == {4}
    scales = [family_of(m).weights(m, read(m).branches[0]).scale for m in (model, result.model)]
    assert scales[0] == scales[1]
    x = images_for(model, 32, seed=2)
    dense = model(x)
    repaired, selected = ((m(x) - dense).square().mean() for m in (result.model, bare.model))
    assert repaired < 0.8 * selected
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_repair_asks_for_what_it_uses() -> None:
    assert repair_needs("least_squares", {"qk"}) == {"logit_moments"}
    assert repair_needs("mean", {"qk"}) == set()
    assert repair_needs("least_squares", {"hidden"}) == {"hidden_moments"}
    model = build("vit")
    statistics = observe(model, as_batches(images_for(model), 4), {"logit_moments"})
    assert statistics.of("logit_moments", "blocks.0.attn")["q_gram"].shape == (4, 8, 8)
