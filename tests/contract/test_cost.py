"""Predicted parameters and MACs are those of the pruned model; what is dropped is gone."""

import pytest
from torch import nn

from secateur.allocation.types import Plan
from secateur.models.family import read
from secateur.models.types import Anatomy
from secateur.surgery.cut import cut_
from tests.contract.cases import CASES, plan_for
from tests.hosts import HOSTS, anatomy_of, build


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", HOSTS)
def test_dense_parameters_are_counted(name: str) -> None:
    assert anatomy_of(name).cost().params == parameters(build(name))


@pytest.mark.parametrize(("name", "group"), CASES)
def test_predicted_cost_is_that_of_the_pruned_model(name: str, group: str) -> None:
    model, anatomy = build(name), anatomy_of(name)
    plan = plan_for(anatomy, group)
    cut_(model, plan, None, "none")
    predicted = anatomy.cost(plan.shapes, plan.widths)
    assert predicted == read(model).cost()
    assert predicted.params == parameters(model)
    assert predicted.params < anatomy.cost().params
    assert predicted.macs < anatomy.cost().macs
    assert_gone(model, build(name), anatomy, plan)


def assert_gone(model: nn.Module, dense: nn.Module, anatomy: Anatomy, plan: Plan) -> None:
    """Dropped layers leave no module, dropped blocks nothing but what belonged to no branch."""
    left = {path for path, _ in model.named_modules()}
    for branch in anatomy.branches:
        assert (branch.id in left) is (plan.shapes[branch.id] is not None)
    for block in anatomy.blocks:
        module = model.get_submodule(block.id)
        inside = sum(anatomy.branch(id).cost(anatomy.shapes[id]).params for id in block.branches)
        outside = parameters(dense.get_submodule(block.id)) - inside
        first = anatomy.branch(block.branches[0])
        outside = outside * anatomy.width_of(first, plan.widths) // first.width
        if all(plan.shapes[branch] is None for branch in block.branches):
            assert parameters(module) == outside
            assert bool(list(module.children())) is bool(outside)
