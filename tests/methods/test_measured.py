"""Candidates measured on the output: in nats, true where measured, and only when wanted."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.allocation.candidates import kept_units
from secateur.allocation.types import Plan
from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import needs_of
from secateur.data.batches import as_batches
from secateur.models.host import host_of
from secateur.statistics import observe
from secateur.surgery.cut import cut_
from secateur.verbs.prune import prune
from tests.contract.cases import plan_of_units
from tests.hosts import build, images_for

FINE = {"qk": 1, "vo": 1, "hidden": 1, "heads": 1, "width": 1}
TEXT = (
    "{title: a, source: b, groups: [hidden, qk, vo, width, branch, block], criterion: magnitude,"
    " criteria: {branch: cosine, block: cosine}, allocation: knapsack, menus: measured}"
)


@torch.no_grad()
def divergence(dense: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    q, p = dense(images).log_softmax(-1), other(images).log_softmax(-1)
    return float(F.kl_div(p, q, log_target=True, reduction="batchmean"))


@torch.no_grad()
def test_losses_are_divergences_of_the_cut_model(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(TEXT)
    model = build("vit")
    images = images_for(model, 10)
    result = prune(model, images, "60% macs", preset=str(mine), align=FINE, minimum=FINE)
    candidates = {entry.key: entry for entry in result.candidates}
    x = images[[4, 9]]  # of few batches every fifth image is held out
    alone = prune(model, x, "50% hidden", preset="magnitude", align=FINE, minimum=FINE)
    for branch in ("blocks.0.mlp", "blocks.2.mlp"):
        smaller = copy.deepcopy(model)
        units = {branch: dict(alone.plan.units[branch])}
        cut_(smaller, plan_of_units(result.before, units), None, "none")
        expected = divergence(model, smaller, x)
        assert candidates[branch, "hidden"].loss(32) == pytest.approx(expected, rel=1e-3)
    narrow = prune(model, x, "50% width", preset="magnitude", align=FINE, minimum=FINE)
    assert candidates["stream", "width"].loss(16) == pytest.approx(
        divergence(model, narrow.model, x), rel=1e-3
    )
    shapes = result.before.shapes
    for key, gone in ((("blocks.1.mlp", "branch"), ("blocks.1.mlp",)),
                      (("blocks.1", "block"), ("blocks.1.attn", "blocks.1.mlp"))):  # fmt: skip
        without = copy.deepcopy(model)
        cut_(without, Plan(shapes=shapes | dict.fromkeys(gone)), None, "none")
        assert candidates[key].losses[0] == pytest.approx(divergence(model, without, x), rel=1e-3)
    assert result.cost.macs <= 0.6 * result.before.cost().macs
    assert "probe" in result.seconds


@pytest.mark.parametrize(
    ("budget", "options"),
    [("50% hidden", {}), ("60% macs", {"allocation": "uniform"})],
    ids=str,
)
def test_nothing_is_measured_where_no_choice_depends_on_it(
    tmp_path: Path, budget: str, options: dict[str, str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(TEXT)
    model = build("vit")
    result = prune(
        model, images_for(model, 4), budget, preset=str(mine), align=FINE, minimum=FINE, **options
    )
    assert "probe" not in result.seconds


@torch.no_grad()
def test_repairs_count(tmp_path: Path) -> None:
    """What a repair can make good costs next to nothing: a constant neuron is free with `mean`."""
    model = build("vit")
    model.blocks[1].mlp.fc1.weight[::2] = 0
    x = images_for(model, 6)
    candidates = {}
    for repair in ("none", "mean"):
        mine = tmp_path / f"{repair}.yaml"
        mine.write_text(
            "{title: a, source: b, groups: [hidden, qk], criterion: variance,"
            " criteria: {qk: magnitude}, allocation: knapsack, menus: measured,"
            f" repair: {repair}}}"
        )
        result = prune(model, x, "80% macs", preset=str(mine), align=FINE, minimum=FINE)
        candidates[repair] = {entry.key: entry for entry in result.candidates}[
            "blocks.1.mlp", "hidden"
        ]
    assert candidates["mean"].loss(32) < 1e-6 < 1e-3 < candidates["none"].loss(32)


@torch.no_grad()
def test_units_and_repairs_rest_on_all_images(tmp_path: Path) -> None:
    model, mine = build("vit"), tmp_path / "mine.yaml"
    mine.write_text(
        "{title: a, source: b, groups: [hidden], criterion: energy, allocation: knapsack,"
        " menus: measured, repair: least_squares}"
    )
    images = images_for(model, 20)
    options = {"align": FINE, "minimum": FINE, "repair": "least_squares"}
    result = prune(model, images, "70% macs", preset=str(mine), **options)  # type: ignore[arg-type]
    sizes = {name: len(own["hidden"]) for name, own in result.plan.units.items() if "hidden" in own}
    assert sizes
    statistics = observe(model, as_batches(images), ["hidden_moments"])
    for name, size in sizes.items():
        energy = ask(
            criteria.get("energy"),
            host_of(model),
            "hidden",
            name,
            observe(model, as_batches(images), needs_of(criteria.get("energy"), "hidden")),
            seed=0,
            settings=None,
        )
        assert result.plan.units[name]["hidden"] == kept_units(energy, size)
    again = copy.deepcopy(model)
    cut_(again, result.plan, statistics, "least_squares")
    torch.testing.assert_close(result.model(images), again(images), rtol=1e-4, atol=1e-5)
