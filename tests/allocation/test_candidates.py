import pytest
import torch

from secateur.allocation.candidates import (
    Limits,
    allowed_sizes,
    block_candidates,
    check_protected,
    drop_candidates,
    kept_units,
    least_sizes,
    unit_candidates,
)
from secateur.errors import UserError
from secateur.models.types import Block, Branch, GroupName
from tests.hosts import anatomy_of

FINE = Limits(
    align={"hidden": 1, "qk": 1, "vo": 1, "heads": 1},
    minimum={"hidden": 1, "qk": 1, "vo": 1, "heads": 1},
)


def branch(kind: str = "mlp", number: int = 0) -> Branch:
    """An MLP of 64 neurons or an attention layer of 4 heads with 8 dims."""
    return next(b for b in anatomy_of("vit").branches if b.kind == kind and b.block == number)


@pytest.mark.parametrize(
    ("step", "least", "sizes"),
    [
        (16, 16, (16, 32, 48, 64)),
        (16, 17, (32, 48, 64)),
        (24, 1, (24, 48, 64)),
        (20, 50, (60, 64)),
        (64, 1, (64,)),
        (100, 1, (64,)),
        (1, 62, (62, 63, 64)),
        (16, 500, (64,)),
    ],
)
def test_sizes_are_aligned_and_not_below_the_minimum(
    step: int, least: int, sizes: tuple[int, ...]
) -> None:
    limits = Limits(align={"hidden": step}, minimum={"hidden": least})
    assert allowed_sizes(branch(), "hidden", limits) == sizes


def test_default_widths_are_multiples_of_eight_and_sixteen() -> None:
    assert allowed_sizes(branch(), "hidden", Limits()) == (16, 32, 48, 64)
    assert allowed_sizes(branch("attention"), "qk", Limits()) == (8,)
    assert allowed_sizes(branch("attention"), "heads", Limits()) == (1, 2, 3, 4)


@pytest.mark.parametrize("name", ["blocks.0.mlp", "blocks.0"])
def test_protected_branches_and_blocks_stay(name: str) -> None:
    limits = Limits(protect=(name,))
    assert allowed_sizes(branch(), "hidden", limits) == (64,)
    assert allowed_sizes(branch(number=1), "hidden", limits) == (16, 32, 48, 64)
    assert drop_candidates("blocks.0.mlp", "branch", 1.0, limits).sizes == (1,)
    block = Block(id="blocks.0", index=0, branches=("blocks.0.attn", "blocks.0.mlp"))
    assert block_candidates(block, 1.0, limits).sizes == (1,)


def test_protection_goes_by_whole_names() -> None:
    assert not Limits(protect=("blocks.1",)).protects("blocks.11.mlp")
    with pytest.raises(UserError, match=r"'blocks\.7' is protected but is no branch"):
        check_protected(anatomy_of("vit"), Limits(protect=("blocks.0", "blocks.7")))
    check_protected(anatomy_of("vit"), Limits(protect=("blocks.0", "blocks.1.attn")))


def test_losses_sum_the_lowest_scores() -> None:
    score = torch.arange(64.0).flip(0)
    entry = unit_candidates(branch(), "hidden", score, Limits())
    assert entry.sizes == (16, 32, 48, 64)
    assert entry.losses == (sum(range(48)), sum(range(32)), sum(range(16)), 0.0)
    assert entry.loss(48) == sum(range(16))


def test_every_head_loses_its_own_lowest_dims() -> None:
    score_HK = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]] * 3 + [[80.0, 70, 60, 50, 40, 30, 20, 10]])
    entry = unit_candidates(branch("attention"), "qk", score_HK, FINE)
    assert entry.loss(7) == 3 * 1 + 10
    assert entry.loss(6) == 3 * (1 + 2) + 10 + 20
    assert kept_units(score_HK, 2) == ((6, 7), (6, 7), (6, 7), (0, 1))


def test_negative_scores_do_not_lower_a_loss() -> None:
    score = torch.full((64,), 1.0)
    score[0] = -5.0
    entry = unit_candidates(branch(), "hidden", score, FINE)
    assert entry.loss(63) == 0.0 and entry.loss(62) == 1.0
    assert all(a >= b for a, b in zip(entry.losses, entry.losses[1:], strict=False))
    assert drop_candidates("blocks.0.mlp", "branch", -2.0, Limits()).losses == (0.0, 0.0)


def test_the_best_units_are_kept_in_order_and_ties_go_to_the_first() -> None:
    assert kept_units(torch.tensor([3.0, 9.0, 1.0, 5.0]), 2) == (1, 3)
    assert kept_units(torch.zeros(6), 3) == (0, 1, 2)


def test_least_sizes() -> None:
    candidates = [unit_candidates(branch(), "hidden", torch.ones(64), Limits())]
    candidates.append(drop_candidates("blocks.1.attn", "branch", 1.0, Limits()))
    wanted: dict[tuple[str, GroupName], int] = {
        ("blocks.0.mlp", "hidden"): 16,
        ("blocks.1.attn", "branch"): 0,
    }
    assert least_sizes(candidates) == wanted
