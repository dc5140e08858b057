"""Selection is a slice of every tensor that knows the units."""

import torch

from secateur.models.family import family_of
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.surgery.select import UnitsByGroup, select
from tests.hosts import anatomy_of, shared


def weights_of(name: str, branch: str) -> BranchWeights:
    return family_of(shared(name)).weights(shared(name), anatomy_of(name).branch(branch))


def attention(units: UnitsByGroup) -> tuple[AttentionWeights, AttentionWeights]:
    """Weights of 4 heads with 8 dims, before and after."""
    dense = weights_of("vit", "blocks.1.attn")
    smaller = select(dense, units, None, "none", "x")
    assert isinstance(dense, AttentionWeights) and isinstance(smaller, AttentionWeights)
    return dense, smaller


def same(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    assert found is not None and expected is not None
    return torch.equal(found.double(), expected.double())


def test_neurons() -> None:
    dense = weights_of("vit_swiglu", "blocks.1.mlp")
    smaller = select(dense, {"hidden": (3, 60)}, None, "none", "x")
    assert isinstance(dense, MlpWeights) and isinstance(smaller, MlpWeights)
    for w, old in zip(smaller.readers_FD, dense.readers_FD, strict=True):
        assert same(w, old[[3, 60]])
    for b, old_b in zip(smaller.reader_biases_F, dense.reader_biases_F, strict=True):
        assert same(b, None if old_b is None else old_b[[3, 60]])
    assert same(smaller.w2_DF, dense.w2_DF[:, [3, 60]]) and same(smaller.b2_D, dense.b2_D)


def test_heads() -> None:
    dense, smaller = attention({"heads": (1, 3)})
    for name in ("q_HKD", "k_HKD", "v_HVD", "qb_HK", "kb_HK", "vb_HV"):
        assert same(getattr(smaller, name), getattr(dense, name)[[1, 3]])
    assert same(smaller.o_DHV, dense.o_DHV[:, [1, 3]]) and same(smaller.ob_D, dense.ob_D)


def test_each_head_keeps_its_own_dims() -> None:
    kept = ((0, 1), (2, 7), (3, 4), (6, 7))
    dense, smaller = attention({"qk": kept, "vo": kept[::-1]})
    for head in range(4):
        qk, vo = list(kept[head]), list(kept[3 - head])
        assert same(smaller.q_HKD[head], dense.q_HKD[head, qk])
        assert same(smaller.k_HKD[head], dense.k_HKD[head, qk])
        assert same(smaller.v_HVD[head], dense.v_HVD[head, vo])
        assert same(smaller.o_DHV[:, head], dense.o_DHV[:, head][:, vo])
        assert smaller.kb_HK is not None and dense.kb_HK is not None
        assert same(smaller.kb_HK[head], dense.kb_HK[head, qk])
    assert smaller.scale == dense.scale


def test_dims_are_numbered_by_dense_heads() -> None:
    kept = ((0,), (1,), (2,), (3,))
    dense, smaller = attention({"heads": (1, 3), "vo": kept})
    assert smaller.v_HVD.shape[:2] == (2, 1) and smaller.q_HKD.shape[:2] == (2, 8)
    assert same(smaller.v_HVD[0], dense.v_HVD[1, [1]])
    assert same(smaller.v_HVD[1], dense.v_HVD[3, [3]])
    assert same(smaller.o_DHV[:, 1], dense.o_DHV[:, 3][:, [3]])


def test_other_groups_leave_an_mlp_alone() -> None:
    dense = weights_of("vit", "blocks.1.mlp")
    assert select(dense, {}, None, "none", "x") is dense
