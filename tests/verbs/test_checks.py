"""What is found out about a request before any image is looked at."""

import pytest
import timm
import torch
from torch import nn

from secateur.allocation.target import budget_use, check_reachable
from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.family import read
from secateur.verbs.prune import prune

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    """Two blocks of 3 heads of 16 dims and 192 neurons."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes).eval()


@pytest.mark.parametrize("groups", [("hidden",), ("qk", "vo", "hidden"), ("heads",), ("branch",)])
def test_the_smallest_reachable_budget_is_reached_and_nothing_below(
    model: nn.Module, groups: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match="smallest reachable is") as refusal:
        prune(
            model,
            IMAGES,
            "1 macs",
            groups=groups,
            preset="energy",
        )
    told = str(refusal.value)
    least = int(told.partition("macs (")[2].partition(" of ")[0].replace(",", ""))
    result = prune(model, IMAGES, f"{least} macs", groups=groups, preset="energy")
    assert result.cost.macs == least
    with pytest.raises(UserError, match="out of reach"):
        prune(model, IMAGES, f"{least - 1} macs", groups=groups, preset="energy")
    percent = told.partition("smallest reachable is ")[2].partition("%")[0]
    assert prune(model, IMAGES, f"{percent}% macs", groups=groups, preset="energy")


def test_protection_counts_in_what_is_reachable(model: nn.Module) -> None:
    anatomy = read(model)
    free = resolve(check(PruneRequest("40% params", preset="energy")), anatomy)
    check_reachable(anatomy, free.demand)
    asked = PruneRequest("40% params", preset="energy", protect=("blocks.0",))
    bound = resolve(check(asked), anatomy)
    with pytest.raises(UserError, match="40% params"):
        check_reachable(anatomy, bound.demand)


@pytest.mark.parametrize("budget", ["drop 2 attention", "drop 1 blocks", "drop 75% layers"])
def test_drops_count_what_is_protected(model: nn.Module, budget: str) -> None:
    anatomy = read(model)
    free = resolve(check(PruneRequest(budget, preset="layer_drop")), anatomy)
    check_reachable(anatomy, free.demand)
    protect = ("blocks.0.attn", "blocks.1.attn")
    task = resolve(check(PruneRequest(budget, preset="layer_drop", protect=protect)), anatomy)
    with pytest.raises(UserError, match="cannot drop"):
        check_reachable(anatomy, task.demand)


def test_no_pass_begins_for_weights_that_are_not_numbers(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: Batches) -> None:
        raise AssertionError("a pass over the images began")

    monkeypatch.setattr(Batches, "__iter__", begin)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        prune(model, IMAGES, "50% macs")


def test_how_a_budget_was_met(model: nn.Module) -> None:
    result = prune(model, IMAGES, "0.9 MMACs", preset="energy")
    use = result.budget_use
    assert use is not None
    assert (use.unit, use.limit, use.reached) == ("macs", 0.9e6, result.cost.macs)
    assert use.shortfall_percent == pytest.approx(100 * (0.9e6 - result.cost.macs) / 0.9e6)
    shares = prune(model, IMAGES, "50% qk", preset="energy")
    assert budget_use(shares.before, shares.cost, shares.task.budget) is None


def test_a_budget_that_is_met_already_is_said_to_be(model: nn.Module) -> None:
    result = prune(model, IMAGES, "100% macs", preset="energy", exact_tail=False)
    assert result.cost == result.cost_dense
    assert result.notes == ["The dense model is within the budget already; nothing was removed."]
