"""Attention in its principal axes: the same outputs, and few dims carry most."""

import pytest
import torch

from secateur.data.batches import as_batches
from secateur.masks.granularity import gates_of, granularities
from secateur.masks.start.axes import axes_needs, turn_attention_
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.models.outputs import outputs_of
from secateur.models.weights import AttentionWeights
from secateur.statistics import observe
from tests.device.hosts import model_of
from tests.hosts import anatomy_of, build, images_for
from tests.masks.cases import CASES, gates_for, scope_of

TURNED = [case for case in CASES if axes_needs(gates_for(*case))]


def test_some_cases_mask_dims_and_some_do_not() -> None:
    assert 0 < len(TURNED) < len(CASES)


@pytest.mark.parametrize(("name", "sharing"), TURNED)
@torch.no_grad()
def test_outputs_stay_and_last_dims_carry_least(name: str, sharing: str) -> None:
    model, gates = build(name), gates_for(name, sharing)
    family, anatomy, x = family_of(model), anatomy_of(name), images_for(model)
    before = outputs_of(model(x))
    needs = axes_needs(gates)
    weights = {b.id: family.weights(model, b) for b in anatomy.branches}
    turn_attention_(host_of(model), gates, observe(model, as_batches(x, 8), needs))
    assert torch.allclose(outputs_of(model(x)), before, rtol=0, atol=1e-4)
    statistics = observe(model, as_batches(x, 8), needs)
    changed = 0
    for branch in anatomy.branches:
        sums, old, new = statistics.about(branch.id), weights[branch.id], None
        if "logit_moments" in sums:
            q_gram, k_gram = (sums["logit_moments"][key].double() for key in ("q_gram", "k_gram"))
            energy_HK = q_gram.diagonal(dim1=1, dim2=2) * k_gram.diagonal(dim1=1, dim2=2)
            assert bool((energy_HK.diff() <= 1e-3 * energy_HK[:, :1]).all())
            new = family.weights(model, branch)
            assert isinstance(old, AttentionWeights) and isinstance(new, AttentionWeights)
            norms = (new.q_HKD.norm(dim=-1), new.k_HKD.norm(dim=-1))
            assert torch.allclose(*norms, rtol=1e-3, atol=1e-6)
            changed += not torch.allclose(old.q_HKD, new.q_HKD, atol=1e-3)
        if "context_moments" in sums:
            new = family.weights(model, branch)
            assert isinstance(old, AttentionWeights) and isinstance(new, AttentionWeights)
            changed += not torch.allclose(old.v_HVD, new.v_HVD, atol=1e-3)
    assert changed


@torch.no_grad()
def test_more_value_dims_than_channels_and_few_images_lose_nothing() -> None:
    """Then covariances have eigenvalues of zero, which sums in single precision put below it."""
    host = host_of(model_of("efficientformer_least"))
    model, x = host.model, images_for(host.model)
    before = model(x)
    gates = tuple(gates_of(granularities.get("independent"), scope_of(model, host.anatomy)))
    needs = axes_needs(gates)
    assert "context_moments" in needs
    turn_attention_(host, gates, observe(model, as_batches(x, 8), needs))
    assert torch.allclose(model(x), before, rtol=0, atol=1e-4)
