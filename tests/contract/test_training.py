"""Pruned models are ordinary modules: they train, copy, and give back their state."""

import copy

import pytest
import torch
from torch import nn

from secateur.data.batches import as_batches
from secateur.models.outputs import outputs_of
from secateur.statistics import observe
from secateur.surgery.cut import cut_
from tests.contract.cases import plan_for
from tests.hosts import HOSTS, anatomy_of, build, images_for, unused

NEEDS = ("hidden_moments", "context_moments", "update_mean")


@pytest.mark.parametrize("name", HOSTS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(name).train()
    x = images_for(model)
    statistics = observe(model, as_batches(x, 2), NEEDS)
    cut_(model, plan_for(anatomy_of(name), "everything"), statistics, "least_squares")
    for parameter_name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.is_leaf, parameter_name
    outputs_of(model(x)).square().sum().backward()
    idle = unused(build(name))
    # A batch norm takes out what a convolution's bias puts in.
    normed = {f"{path}.bias" for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    normed = normed if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else set()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) is (parameter_name in idle), parameter_name
        if parameter_name in normed | idle:
            continue
        # Keys may shift by a constant without effect, so their bias has no gradient to speak of.
        if not parameter_name.endswith(("k_norm.bias", "k.bias", "k_proj.bias", "key.bias")):
            assert float(parameter.grad.abs().max()) > 1e-6, parameter_name


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_copies_and_states_carry_the_whole_model(name: str) -> None:
    model, other = build(name), build(name)
    plan = plan_for(anatomy_of(name), "everything")
    cut_(model, plan, None, "none")
    x = images_for(model)
    expected = outputs_of(model(x))
    assert torch.equal(outputs_of(copy.deepcopy(model)(x)), expected)
    cut_(other, plan, None, "none")
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(outputs_of(other(x)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_keep_their_type_and_frozen_parameters(dtype: torch.dtype) -> None:
    model = build("deit3").to(dtype)
    model.requires_grad_(False)
    x = images_for(model).to(dtype)
    statistics = observe(model, as_batches(x, 2), NEEDS)
    cut_(model, plan_for(anatomy_of("deit3"), "everything"), statistics, "least_squares")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any(p.requires_grad for p in model.parameters())
    assert outputs_of(model(x)).dtype == dtype
