"""Budgets of every sort end in sizes that keep to them."""

import re

import pytest
import torch

from secateur.allocation.candidates import block_candidates, drop_candidates, unit_candidates
from secateur.allocation.target import check_reachable, decide
from secateur.allocation.types import Candidates, Shapes, shapes_of
from secateur.errors import UserError
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.types import AttentionShape, MlpShape
from secateur.verbs.prune import prune
from tests.hosts import anatomy_of, build, images_for

FINE = {"hidden": 1, "qk": 1, "vo": 1, "heads": 1}


def shapes(budget: str, drops: dict[str, float] | None = None, **options: object) -> Shapes:
    """What a budget makes of the small ViT; `drops` are losses of branches and blocks."""
    anatomy = anatomy_of("vit")
    task = resolve(check(PruneRequest(budget, **options)), anatomy)  # type: ignore[arg-type]
    losses = drops or {}
    candidates: list[Candidates] = []
    for branch in anatomy.branches:
        for group in branch.groups:
            if group in task.groups:
                size = branch.shape.size(group)
                score = torch.ones(4, size) if group in ("qk", "vo") else torch.ones(size)
                candidates.append(unit_candidates(branch, group, score, task.limits))
        if "branch" in task.groups:
            loss = losses.get(branch.id, 9.0)
            candidates.append(drop_candidates(branch.id, "branch", loss, task.limits))
    if "block" in task.groups:
        candidates += [
            block_candidates(b, losses.get(b.id, 9.0), task.limits) for b in anatomy.blocks
        ]
    check_reachable(anatomy, task.demand)
    return shapes_of(anatomy, decide(anatomy, candidates, task.demand))


def dropped(budget: str, losses: dict[str, float], **options: object) -> set[str]:
    return {id for id, shape in shapes(budget, losses, **options).items() if shape is None}


def test_shares_hold_in_every_layer() -> None:
    found = shapes("50% qk, 25% vo, 70% hidden", align=FINE, minimum=FINE)
    for id, shape in found.items():
        if id.endswith("mlp"):
            assert shape == MlpShape(hidden=44)
        else:
            assert shape == AttentionShape(heads=4, qk=4, vo=2)


def test_shares_are_rounded_down_to_aligned_widths() -> None:
    assert shapes("70% hidden")["blocks.0.mlp"] == MlpShape(hidden=32)
    assert shapes("50% heads")["blocks.0.attn"] == AttentionShape(heads=2, qk=8, vo=8)
    assert shapes("100% hidden")["blocks.0.mlp"] == MlpShape(hidden=64)


@pytest.mark.parametrize(
    ("budget", "least"), [("10% hidden", "25"), ("50% qk", "100"), ("20% heads", "25")]
)
def test_shares_out_of_reach_name_the_smallest_that_is_not(budget: str, least: str) -> None:
    with pytest.raises(UserError, match="smallest reachable") as error:
        shapes(budget)
    named = re.search(r"reachable is ([\d.]+)% (\w+)", str(error.value))
    assert named is not None and named[1] == least
    shapes(f"{named[1]}% {named[2]}")


def test_shares_do_not_concern_protected_layers() -> None:
    found = shapes("50% hidden", protect=("blocks.1",))
    assert [found[f"blocks.{i}.mlp"] for i in range(3)] == [
        MlpShape(hidden=32),
        MlpShape(hidden=64),
        MlpShape(hidden=32),
    ]
    everywhere = ("blocks.0", "blocks.1.attn", "blocks.2.attn")
    assert shapes("50% qk", protect=everywhere) == anatomy_of("vit").shapes


LOSSES = {
    "blocks.0.attn": 3.0,
    "blocks.0.mlp": 1.0,
    "blocks.1.attn": 2.0,
    "blocks.1.mlp": 6.0,
    "blocks.2.attn": 5.0,
    "blocks.2.mlp": 4.0,
    "blocks.0": 3.0,
    "blocks.1": 1.0,
    "blocks.2": 2.0,
}


@pytest.mark.parametrize(
    ("budget", "gone"),
    [
        ("drop 1 attention", {"blocks.1.attn"}),
        ("drop 2 attention", {"blocks.1.attn", "blocks.0.attn"}),
        ("drop 1 mlp", {"blocks.0.mlp"}),
        ("drop 3 layers", {"blocks.0.mlp", "blocks.1.attn", "blocks.0.attn"}),
        ("drop 1 block", {"blocks.1.attn", "blocks.1.mlp"}),
        ("drop 34% mlps", {"blocks.0.mlp", "blocks.2.mlp"}),
        ("drop 33.4% layers", {"blocks.0.mlp", "blocks.1.attn", "blocks.0.attn"}),
        ("drop 33% layers", {"blocks.0.mlp", "blocks.1.attn"}),
        ("drop 0 mlp", set()),
        ("drop 1 attention, drop 1 mlp", {"blocks.1.attn", "blocks.0.mlp"}),
    ],
)
def test_the_least_harmful_layers_go(budget: str, gone: set[str]) -> None:
    assert dropped(budget, LOSSES) == gone


@pytest.mark.parametrize("budget", ["drop 1 block, drop 1 attention", "drop 1 attn, drop 1 block"])
def test_no_layer_is_dropped_twice(budget: str) -> None:
    assert dropped(budget, LOSSES) == {"blocks.1.attn", "blocks.1.mlp", "blocks.0.attn"}


def test_shares_and_drops_go_together() -> None:
    found = shapes("50% hidden, drop 1 attention", LOSSES)
    assert found["blocks.1.attn"] is None and found["blocks.1.mlp"] == MlpShape(hidden=32)


@pytest.mark.parametrize(
    ("budget", "protect", "left"),
    [
        ("drop 4 attention", (), 3),
        ("drop 3 attention", ("blocks.0",), 2),
        ("drop 3 blocks", ("blocks.1.mlp",), 2),
        ("drop 3 blocks, drop 1 mlp", (), 0),
    ],
)
def test_more_drops_than_layers_are_refused(
    budget: str, protect: tuple[str, ...], left: int
) -> None:
    with pytest.raises(UserError, match=f"the model has {left} that are not protected"):
        shapes(budget, protect=protect)


@pytest.mark.parametrize("name", ["vit", "vit_no_biases", "aimv2", "deit3", "vit_post_norm"])
@pytest.mark.parametrize("preset", ["energy", "vbp", "taylor"])
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_pruned_models_keep_to_their_budget(name: str, preset: str, unit: str) -> None:
    model = build(name)
    result = prune(
        model,
        images_for(model, 4),
        f"80% {unit}",
        preset=preset,
        groups=["hidden", "branch"],
        align=FINE,
        minimum=FINE,
    )
    pruned, dense = getattr(result.cost, unit), getattr(result.cost_dense, unit)
    assert 0.7 * dense < pruned <= 0.8 * dense
    assert result.cost.params == sum(p.numel() for p in result.model.parameters())


def test_repairs_that_add_biases_keep_to_budgets_in_parameters() -> None:
    model = build("vit_no_biases")
    for preset in ("energy", "layer_drop"):
        for share in (60, 75, 90):
            budget = f"{share}% params"
            images = images_for(model, 4)
            result = prune(model, images, budget, preset=preset, align=FINE, minimum=FINE)
            assert result.cost.params <= share / 100 * result.cost_dense.params
            added = set(result.model.state_dict()) - set(model.state_dict())
            assert added and all(key.endswith((".fc2.bias", ".proj.bias")) for key in added)
