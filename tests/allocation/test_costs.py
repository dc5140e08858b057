"""Costs as functions of sizes."""

import random

import pytest

from secateur.allocation.costs import additive_cost, cost_function, with_fixed
from secateur.allocation.types import Sizes, dense_sizes, shapes_of, widths_of
from secateur.models.types import Branch, Shape
from tests.hosts import anatomy_of

HOSTS = ["vit", "vit_swiglu", "clip", "vit_no_biases"]


def some_sizes(host: str, seed: int) -> Sizes:
    """Sizes of some groups, branches and blocks."""
    draw = random.Random(seed)
    dense = dense_sizes(anatomy_of(host))
    return {
        key: draw.randint(0 if key[1] in ("branch", "block") else 1, most)
        for key, most in dense.items()
        if draw.random() < 0.7 or key[1] == "width"
    }


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_the_sum_is_the_cost_of_the_anatomy(host: str, unit: str) -> None:
    anatomy = anatomy_of(host)
    cost_of = cost_function(anatomy, unit)
    assert cost_of({}) == getattr(anatomy.cost(), unit)
    for seed in range(20):
        sizes = some_sizes(host, seed)
        expected = anatomy.cost(shapes_of(anatomy, sizes), widths_of(anatomy, sizes))
        assert cost_of(sizes) == getattr(expected, unit)
        assert cost_of(sizes) == cost_of.part("stream", sizes)
        del sizes["stream", "width"]
        parts = sum(cost_of.part(block.id, sizes) for block in anatomy.blocks)
        assert cost_of(sizes) == cost_of.ends + parts


def test_each_shape_is_priced_once() -> None:
    anatomy, asked = anatomy_of("vit"), []

    def price(branch: Branch, shape: Shape | None) -> float:
        asked.append((branch.id, shape))
        return 1.0 if shape else 0.0

    cost_of = additive_cost(anatomy, "ms", 0.5, price)
    for _ in range(3):
        assert cost_of({("blocks.0.mlp", "branch"): 0}) == 0.5 + len(anatomy.branches) - 1
        assert cost_of({("blocks.0", "block"): 0}) == 0.5 + len(anatomy.branches) - 2
    assert cost_of.part("blocks.1", {}) == 2
    assert len(asked) == len(anatomy.branches) + 2


def test_what_shares_a_branch() -> None:
    cost_of = cost_function(anatomy_of("vit"), "macs")
    assert cost_of.share("blocks.0", "blocks.0.mlp")
    assert cost_of.share("blocks.0.mlp", "blocks.0")
    assert not cost_of.share("blocks.0.mlp", "blocks.0.attn")
    assert not cost_of.share("blocks.1", "blocks.0.mlp")
    assert cost_of.share("stream", "blocks.1") and cost_of.share("blocks.0.mlp", "stream")


def test_settled_sizes_stay_whatever_is_asked() -> None:
    cost_of = cost_function(anatomy_of("vit"), "macs")
    settled = with_fixed(cost_of, {("blocks.0", "block"): 0, ("stream", "width"): 16})
    other = {("blocks.1.mlp", "hidden"): 7, ("stream", "width"): 32}
    fixed = {("blocks.0", "block"): 0, ("stream", "width"): 16, ("blocks.1.mlp", "hidden"): 7}
    assert settled(other) == cost_of(fixed) < cost_of({})
    assert settled.part("blocks.0", other) == 0
    assert settled.share("stream", "blocks.0") and not settled.share("blocks.0", "blocks.1")


def test_amounts_in_sentences() -> None:
    anatomy = anatomy_of("vit")
    assert cost_function(anatomy, "macs").text(1234567.0) == "1,234,567"
    assert additive_cost(anatomy, "ms", 0.0, lambda *_: 0.0).text(6.5) == "6.500 ms"
