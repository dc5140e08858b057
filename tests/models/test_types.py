import pytest

from secateur.models.types import AttentionShape, Branch, Cost, MlpShape, Rate
from tests.hosts import anatomy_of


def test_costs_add_subtract_and_multiply() -> None:
    a, b = Cost(params=3, macs=10), Cost(params=1, macs=4)
    assert a + b == Cost(params=4, macs=14)
    assert a - b == Cost(params=2, macs=6)
    assert a * 3 == Cost(params=9, macs=30)
    assert Rate(base=a, per_width=b).at(5) == Cost(params=8, macs=30)


def branch(kind: str) -> Branch:
    return next(b for b in anatomy_of("vit").branches if b.kind == kind)


def test_an_attention_layer_costs_what_its_products_cost() -> None:
    tokens, width = 17, 32
    for heads, qk, vo in ((4, 8, 8), (4, 5, 8), (3, 8, 2), (1, 1, 1)):
        cost = branch("attention").cost(AttentionShape(heads=heads, qk=qk, vo=vo))
        inner = heads * (2 * qk + vo)
        products = tokens * width * inner + tokens * heads * vo * width
        assert cost.macs == products + tokens**2 * heads * (qk + vo)
        weights = width * inner + inner + width * heads * vo + width
        assert cost.params == weights + 2 * width


def test_an_mlp_costs_what_its_products_cost() -> None:
    for hidden in (1, 30, 64):
        cost = branch("mlp").cost(MlpShape(hidden=hidden))
        assert cost.macs == 2 * 17 * 32 * hidden
        assert cost.params == 2 * 32 * hidden + hidden + 32 + 2 * 32


def test_costs_follow_the_residual_width() -> None:
    narrow = branch("mlp").cost(MlpShape(hidden=64), width=16)
    assert narrow == Cost(params=2 * 16 * 64 + 64 + 16 + 2 * 16, macs=2 * 17 * 16 * 64)


def test_dropped_branches_cost_nothing() -> None:
    assert branch("mlp").cost(None) == Cost()
    anatomy = anatomy_of("vit")
    assert anatomy.cost({}) == anatomy.ends.at(anatomy.width)
    whole = anatomy.cost()
    parts = anatomy.cost({}) + sum((b.cost(b.shape) for b in anatomy.branches), Cost())
    assert whole == parts


def test_the_ends_cost_what_their_products_cost() -> None:
    patches, kernel = 16, 3 * 8 * 8
    assert anatomy_of("vit").cost({}).macs == patches * kernel * 32 + 32 * 10
    assert anatomy_of("deit_distilled").cost({}).macs == patches * kernel * 32 + 2 * 32 * 10
    pooled = anatomy_of("vit_refined_pool").cost({}).macs - anatomy_of("vit").cost({}).macs
    assert pooled == 2 * 17 * 17 * 32


def test_groups_are_those_of_the_kind_without_the_refused() -> None:
    assert branch("attention").groups == ("qk", "vo", "heads")
    assert branch("mlp").groups == ("hidden",)
    assert anatomy_of("vit_qk_norm").branches[0].groups == ("vo", "heads")
    assert anatomy_of("vit_gated").branches[0].groups == ()


def test_branches_are_found_by_name() -> None:
    assert anatomy_of("vit").branch("blocks.1.mlp").block == 1
    with pytest.raises(KeyError):
        anatomy_of("vit").branch("blocks.9.mlp")


def test_prefix_tokens_are_counted() -> None:
    for name, prefix in {
        "vit": 1,
        "deit_distilled": 2,
        "dinov2_registers": 5,
        "vit_average_pool": 0,
    }.items():
        anatomy = anatomy_of(name)
        assert (anatomy.prefix_tokens, anatomy.tokens) == (prefix, 16 + prefix)
        assert anatomy.input_size == (3, 32, 32) and anatomy.num_classes == 10
