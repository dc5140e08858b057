"""What stays takes over from what closes: least squares, in place, in the masked model."""

import pytest
import torch

from secateur.data.batches import as_batches
from secateur.masks.gates import keep
from secateur.masks.removal.takeover import NEEDS, Takeover
from secateur.models.caches import evaluating
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.statistics import Statistics, observe
from tests.hosts import anatomy_of, build, images_for
from tests.masks.cases import CASES, bank_of, gates_for, random_margins

SHARING = "common_count"


def updates(model, x, branches):  # type: ignore[no-untyped-def]
    """The update of each branch in one pass."""
    family, found, handles = family_of(model), {}, []
    for branch in branches:
        hook_point = family.hook_points(model, branch)["update"]
        module = model.get_submodule(hook_point.module)
        handles.append(
            module.register_forward_hook(
                lambda _m, _a, out, name=branch.id: found.__setitem__(name, out.detach().clone())
            )
        )
    model(x)
    for handle in handles:
        handle.remove()
    return found


def closes_a_writer(name: str) -> bool:
    """Whether gates act on the inputs of the writer of the first branch that they reach."""
    acts = [act for gate in gates_for(name, SHARING) for act in gate.acts]
    order = [branch.id for branch in anatomy_of(name).branches]
    first = min((act.branch for act in acts), key=order.index)
    return any(act.branch == first and act.site in NEEDS for act in acts)


HOSTS = [name for name, sharing in CASES if sharing == SHARING and closes_a_writer(name)]


@pytest.mark.parametrize("name", HOSTS)
def test_the_first_branch_is_nearer_than_with_masks_alone(name: str) -> None:
    x = images_for(build(name))
    gates = gates_for(name, SHARING)
    margins = random_margins(gates)
    after = {g.name: keep(g, margins[g.name], max(1, int(0.7 * g.most))) for g in gates}
    errors = {}
    for repaired in (False, True):
        model, bank = build(name), bank_of(gates)
        anatomy = anatomy_of(name)
        model.train()
        kinds = [type(m) for m in model.modules()]
        ids = [id(p) for p in model.parameters()]

        def look(needs: set[str], model=model) -> Statistics:  # type: ignore[no-untyped-def]
            assert needs <= set(NEEDS.values())
            with evaluating(model):
                return observe(model, as_batches(x, 8), needs)

        with bank.attached(model), torch.no_grad():
            before = bank.kept()
            first = [
                b for b in anatomy.branches if b.id in {a.branch for g in gates for a in g.acts}
            ][:1]
            model.eval()
            dense = updates(model, x, first)
            model.train()
            if repaired:
                Takeover(host_of(model), gates, look)(before, after)
                assert model.training
            bank.hold(after)
            model.eval()
            errors[repaired] = (
                (updates(model, x, first)[first[0].id] - dense[first[0].id]).square().mean()
            )
        assert [type(m) for m in model.modules()] == kinds
        assert [id(p) for p in model.parameters()] == ids, "optimizers would lose their weights"
    assert errors[True] < 0.9 * errors[False]


def test_nothing_is_observed_where_nothing_closes() -> None:
    model, gates = build("vit"), gates_for("vit", SHARING)
    bank = bank_of(gates)

    def refuse(needs: set[str]) -> Statistics:
        raise AssertionError(needs)

    takeover = Takeover(host_of(model), gates, refuse)
    takeover(bank.kept(), bank.kept())
    half = {g.name: keep(g, torch.zeros(g.rows, g.units), max(1, g.most // 2)) for g in gates}
    takeover(half, bank.kept())
