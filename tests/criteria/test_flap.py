"""Weighted input feature variance against hand-computed values; standardised ranking."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.allocation.normalise import normalised
from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.weights import MlpWeights
from secateur.presets import load_preset
from secateur.statistics import observe
from secateur.statistics.kinds.moments import add_energies_, add_moments_
from secateur.verbs.prune import prune
from tests.hosts import anatomy_of, build, images_for

X_TF = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0]])
"""Two tokens of three neurons: variances 1, 0, 0."""
MLP = MlpWeights(
    readers_FD=(torch.ones(3, 2),),
    reader_biases_F=(None,),
    w2_DF=torch.tensor([[3.0, 1.0, 1.0], [4.0, 1.0, 1.0]]),
    b2_D=None,
)


def worth(sums: dict[str, dict[str, Tensor]], group: str, weights: object) -> Tensor:
    question = Question(group=group, owner="x", weights=weights, sums=sums, images=1, seed=0)
    return score(criteria.get("wifv"), question)


def test_variance_is_weighted_by_the_squared_norm_of_the_column() -> None:
    sums: dict[str, Tensor] = {}
    add_energies_(sums, X_TF)
    assert worth({"hidden_energies": sums}, "hidden", MLP).tolist() == [25.0, 0.0, 0.0]
    full: dict[str, Tensor] = {}
    add_moments_(full, X_TF[None])
    assert worth({"hidden_moments": full}, "hidden", MLP).tolist() == [25.0, 0.0, 0.0]


def test_heads_are_the_sum_of_their_dims() -> None:
    model = build("vit")
    branch = read(model).branches[0]
    weights = family_of(model).weights(model, branch)
    statistics = observe(model, as_batches(images_for(model), 4), {"context_energies"})
    about = statistics.about(branch.id)
    vo_HV = worth(about, "vo", weights)
    assert vo_HV.shape == (4, 8)
    torch.testing.assert_close(worth(about, "heads", weights), vo_HV.sum(1))
    mean_U = about["context_energies"]["sum"] / about["context_energies"]["count"]
    square_U = about["context_energies"]["square"] / about["context_energies"]["count"]
    expected = (square_U[9] - mean_U[9] ** 2) * weights.o_DHV[:, 1, 1].double().square().sum()
    torch.testing.assert_close(vo_HV[1, 1], expected)


def test_it_is_the_error_that_mean_replacement_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TF = torch.randn(50, 3, generator=generator)
    sums: dict[str, Tensor] = {}
    add_energies_(sums, x_TF)
    value_F = worth({"hidden_energies": sums}, "hidden", MLP)
    for unit in range(3):
        replaced = x_TF.clone()
        replaced[:, unit] = x_TF[:, unit].mean()
        error = ((x_TF - replaced) @ MLP.w2_DF.T).square().sum(1).mean()
        torch.testing.assert_close(value_F[unit], error.double(), rtol=1e-5, atol=1e-6)


def test_standardised_scores_share_one_origin() -> None:
    anatomy = anatomy_of("vit")
    first, second, third = [b.id for b in anatomy.branches if b.kind == "mlp"]
    scores = {
        (first, "hidden"): torch.tensor([0.0, 2.0]),
        (second, "hidden"): torch.tensor([100.0, 100.0, 100.0, 180.0]),
        (third, "hidden"): torch.tensor([7.0, 7.0]),
        (first, "branch"): torch.tensor(0.25),
    }
    scaled = normalised(scores, "zscore", anatomy)
    # z: -1, 1; -0.57735 three times, 1.73205; 0, 0. The least of all, -1, becomes 0.
    torch.testing.assert_close(scaled[first, "hidden"], torch.tensor([0.0, 2.0]).double())
    z = 3**-0.5
    expected = torch.tensor([1 - z, 1 - z, 1 - z, 1 + 3 * z]).double()
    torch.testing.assert_close(scaled[second, "hidden"], expected)
    assert scaled[third, "hidden"].tolist() == [1.0, 1.0]
    assert float(scaled[first, "branch"]) == 0.25


def test_a_head_counts_as_many_dims_and_shares_sum_to_one() -> None:
    anatomy = anatomy_of("vit")
    owner = anatomy.branches[0].id
    scores = {(owner, "heads"): torch.tensor([1.0, 3.0])}
    assert normalised(scores, "zscore", anatomy)[owner, "heads"].tolist() == [0.0, 16.0]
    assert normalised(scores, "sum", anatomy)[owner, "heads"].tolist() == [0.25, 0.75]
    assert normalised(scores, "none", anatomy)[owner, "heads"].tolist() == [1.0, 3.0]
    nothing = {(owner, "heads"): torch.zeros(2)}
    assert normalised(nothing, "sum", anatomy)[owner, "heads"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("groups", [None, ("hidden", "vo", "heads")])
def test_the_preset_ranks_globally_and_adds_to_the_bias(groups: tuple[str, ...] | None) -> None:
    model = build("vit")
    small = {"hidden": 4, "vo": 2}
    result = prune(
        model, images_for(model, 8), "75% params", preset="flap", groups=groups, align=small,
        minimum=small,
    )  # fmt: skip
    assert result.cost.params <= 0.75 * result.before.cost().params
    assert all(min(entry.losses) >= 0 for entry in result.candidates)
    assert all(list(m.losses) == sorted(m.losses, reverse=True) for m in result.candidates)
    widths = {s.hidden for s in result.plan.shapes.values() if s and hasattr(s, "hidden")}
    assert len(widths) > 1
    assert bool(torch.isfinite(result.model(images_for(model))).all())


@torch.no_grad()
def test_a_constant_neuron_goes_without_loss_beside_the_bias_that_was_there() -> None:
    model = build("vit")
    family = family_of(model)
    for branch in read(model).branches:
        weights = family.weights(model, branch)
        if isinstance(weights, MlpWeights):
            reader = weights.readers_FD[0].clone()
            reader[::2] = 0
            family.assign_(model, branch, replace(weights, readers_FD=(reader,)))
    x = images_for(model)
    assert load_preset("flap").repair == "mean"
    fine = {"hidden": 1}
    result = prune(
        model, images_for(model, 8, seed=1), "50% hidden", preset="flap", align=fine, minimum=fine
    )
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-5)
