"""Merged tokens: equal ones change nothing, costs are as counted, models are saved and exported."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.models.derived.tokens.merge import matched, merges_of
from secateur.models.derived.tokens.tail import tail_of
from secateur.models.family import family_of, read
from tests.hosts import HOSTS, anatomy_of, build, images_for

CAN = [name for name in HOSTS if "tokens" not in anatomy_of(name).refusals]


def merges_for(model: nn.Module) -> dict[str, int]:
    """Four patches in the first block and three in the second."""
    first, second, *_ = read(model).blocks
    return {first.id: 4, second.id: 3}


def merging(model: nn.Module, *, tail: bool = True) -> nn.Module:
    """A copy that merges seven patches, with the exact tail or without."""
    other = copy.deepcopy(model)
    family_of(other).put_merges_(other, merges_for(model))
    if tail:
        family_of(other).put_tail_(other)
    return other


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("name", CAN)
def test_costs_are_counted_and_predicted(name: str, tail: bool) -> None:
    model = build(name)
    planned = family_of(model).read(model, exact_tail=tail, merges=merges_for(model))
    smaller = merging(model, tail=tail)
    cost = counted(smaller, planned.input_size)
    assert cost == planned.cost() == read(smaller).cost()
    assert planned.reference == read(model).cost()
    tokens = planned.tokens
    assert [b.tokens for b in planned.branches] == [tokens, tokens - 4, tokens - 4] + 3 * [
        tokens - 7
    ]
    with torch.no_grad():
        images_BCHW = images_for(model, 2)
        assert apart(smaller(images_BCHW), smaller(images_BCHW)) == 0
    smaller.train()
    smaller(images_BCHW).square().sum().backward()
    first = planned.branches[0].id
    grad = smaller.get_parameter(f"{first}.qkv.weight").grad
    assert grad is not None and bool(grad.isfinite().all()) and float(grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["vit", "vit_qk_norm", "vit_post_norm", "deit_distilled"])
def test_equal_tokens_merge_without_a_change(name: str) -> None:
    """Neighbours in a row are equal, as far as positions go; all eight pairs of them merge."""
    model = build(name)
    with torch.no_grad():
        model.get_parameter("pos_embed").zero_()
        rows_BCHW = images_for(model, 2)
        half = rows_BCHW.unfold(3, 8, 16)
        images_BCHW = torch.cat([half, half], dim=4).flatten(3)
        expected = model(images_BCHW)
        merged = copy.deepcopy(model)
        family_of(merged).put_merges_(merged, {"blocks.0": 8})
        assert apart(merged(images_BCHW), expected) <= 1e-5
        family_of(merged).put_tail_(merged)
        assert apart(merged(images_BCHW), expected) <= 1e-5
        family_of(model).put_merges_(model, {"blocks.0": 0})
        assert torch.equal(model(images_BCHW), expected)


def test_the_most_similar_pairs_are_matched() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 1.9], [5, 0.1], [1, -1]]])
    kept, gone, partner = matched(keys, 2)
    # The first set is tokens 0, 2 and 4; 2 is nearest to 3, 0 as near to 3 as to 5, 4 to 5.
    assert gone.tolist() == [[1, 2]] and kept.tolist() == [[0]]
    assert partner.tolist() == [[1, 1]] or partner.tolist() == [[1, 2]]


def test_compiled_and_exported_models_agree() -> None:
    smaller, images_BCHW = merging(build("vit")), images_for(build("vit"), 3)
    with torch.no_grad():
        expected = smaller(images_BCHW)
        program = torch.export.export(
            smaller, (images_BCHW,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        compiled = torch.compile(smaller, fullgraph=True, backend="eager")
        for other in (program.module(), compiled, copy.deepcopy(smaller)):
            assert apart(other(images_BCHW), expected) <= 1e-5
        assert apart(smaller.bfloat16()(images_BCHW.bfloat16()).float(), expected) < 0.3


def test_tome_is_within_its_budget_and_saved(tmp_path: Path) -> None:
    model = secateur.load("digits_vit")
    found = secateur.prune(model, "digits/train", "60% macs", preset="tome", limit=8)
    assert 0.55 * found.cost_dense.macs < found.cost.macs <= 0.6 * found.cost_dense.macs
    assert found.cost == counted(found.model, found.before.input_size)
    assert found.cost.params == found.cost_dense.params
    assert merges_of(model) == {} and sum(merges_of(found.model).values()) > 0
    found.save(tmp_path / "merged")
    again = secateur.load(tmp_path / "merged")
    assert merges_of(again) == found.plan.merges and tail_of(again) is not None
    with torch.no_grad():
        images_BCHW = images_for(model, 2)
        assert apart(again(images_BCHW), found.model(images_BCHW)) <= 1e-6
    top1 = secateur.evaluate(again, "digits/test").top1
    assert top1 > secateur.evaluate(model, "digits/test").top1 - 10
    with pytest.raises(UserError, match="merges tokens already"):
        secateur.prune(again, "digits/train", "50% macs", preset="energy", limit=8)
    lighter = secateur.prune(model, "digits/train", "70% macs", preset="energy", limit=64)
    both = secateur.prune(lighter.model, "digits/train", "70% macs", preset="tome", limit=8)
    assert both.cost.macs <= 0.7 * lighter.cost.macs
    assert both.cost == counted(both.model, both.before.input_size)


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        ("60% params", {"preset": "tome"}, "counted in MACs"),
        ("60% macs", {"preset": "energy", "groups": ("tokens", "qk")}, "a preset of their own"),
        ("60% macs", {"preset": "tome", "groups": ("qk",)}, "a preset of their own"),
        ("5% macs", {"preset": "tome"}, "out of reach by merging"),
    ],
)
def test_what_cannot_be_asked(budget: str, options: dict[str, object], words: str) -> None:
    model = build("vit")
    with pytest.raises(UserError, match=words):
        secateur.prune(model, images_for(model, 8), budget, **options)  # type: ignore[arg-type]


def test_models_and_counts_that_cannot_merge_are_refused() -> None:
    for name in set(HOSTS) - set(CAN):
        model = build(name)
        with pytest.raises(UserError, match="group 'tokens' cannot be pruned here"):
            secateur.prune(model, images_for(model, 8), "60% macs", preset="tome")
    model = build("vit")
    for merges, words in (
        ({"blocks.2": 1}, "the last one"),
        ({"blocks.0": 9}, "at most 8 in pairs"),
        ({"blocks.0": 8, "blocks.1": 5}, "8 patches arrive"),
    ):
        with pytest.raises(UserError, match=words):
            family_of(model).put_merges_(model, merges)
