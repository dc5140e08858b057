"""A host that keeps queries, keys and values apart, has its own words, and returns pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.measurement.counting import counted
from secateur.models.family import Family
from secateur.models.hook_points import attached
from secateur.models.modules import SlimAttention
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    MlpLayer,
    Residual,
    Separate,
    Statement,
    Stem,
    Tail,
)
from secateur.models.types import AttentionShape, MlpShape
from secateur.models.weights import AttentionWeights, MlpWeights
from tests.hosts import randomise_


class ApartAttention(nn.Module):
    """The form of attention in transformers: keys without a bias, a pair comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.head_dim, self.scaling = 4, 8, 0.3
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32) for _ in range(3))
        self.k_proj = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = self.scaling * q @ k.mT + (0 if attention_mask is None else attention_mask)
        weights = logits.softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class ApartBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention, self.lambda_1 = ApartAttention(), nn.Parameter(torch.ones(32))
        self.feed = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = x + self.lambda_1 * self.attention(self.before(x), attention_mask=attention_mask)[0]
        return x + self.feed(self.after(x))


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 32, 8, stride=8), nn.Parameter(torch.ones(1, 1, 32))
        self.layer = nn.ModuleList(ApartBlock() for _ in range(2))
        self.norm, self.head, self.num_classes = nn.LayerNorm(32), nn.Linear(32, 5), 5
        mask = torch.zeros(17, 17)
        mask[:, 3] = -2.0
        self.register_buffer("mask", mask)

    def embed(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        return torch.cat([self.cls.expand(len(x), -1, -1), x], 1)

    def forward(self, images: Tensor) -> Any:
        x = self.embed(images)
        for block in self.layer:
            x = block(x, attention_mask=self.mask)
        return self.head(self.norm(x)[:, 0])


FAMILY = Family(
    Statement(
        name="apart",
        title="Apart",
        hosts=(f"{__name__}:Apart",),
        blocks="layer.*",
        residuals={
            "ApartBlock": (
                Residual(
                    norm="before",
                    scale="lambda_1",
                    layers=(
                        AttentionLayer(
                            path="attention",
                            classes=("ApartAttention",),
                            qkv=Separate(q="q_proj", k="k_proj", v="v_proj"),
                            out="o_proj",
                            heads="num_attention_heads",
                            scale="scaling",
                            sizes={"head_dim": "qk"},
                            call=Call(mask="attention_mask", pair=True),
                            holds=Holds.EQUAL_DIMS,
                        ),
                    ),
                ),
                Residual(
                    norm="after",
                    layers=(
                        MlpLayer(path="feed", classes=("Sequential",), readers=("0",), writer="2"),
                    ),
                ),
            )
        },
        stem=Stem(writer="patches", tokens=("cls",)),
        tail=Tail(norms=("norm",), classifiers=("head",)),
        embed=lambda model, images: model.embed(images),
        head=lambda model, x: model.head(model.norm(x)[:, 0]),
        image=lambda model: (3, 32, 32),
        grid=lambda model: (4, 4),
        prefix=lambda model: 1,
        given=lambda model, index: {"attention_mask": model.mask},
    )
)


def model() -> Apart:
    made = Apart()
    randomise_(made, seed=3)
    return made.eval()


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def walked(one: nn.Module) -> Tensor:
    x = FAMILY.embed(one, X)
    for branch in FAMILY.read(one).branches:
        x = FAMILY.through(one, branch)(x)
    return FAMILY.head(one, x)


@torch.no_grad()
def test_the_walk_is_the_model_and_costs_are_counted() -> None:
    one = model()
    assert FAMILY.matches(one)
    assert torch.allclose(walked(one), one(X), atol=1e-5)
    assert FAMILY.read(one).cost() == counted(one, (3, 32, 32))


@pytest.mark.parametrize(
    ("shape", "ours"),
    [
        (AttentionShape(heads=2, qk=8, vo=8), False),
        (AttentionShape(heads=4, qk=5, vo=5), False),
        (AttentionShape(heads=3, qk=4, vo=8), True),
    ],
)
@torch.no_grad()
def test_shapes_go_where_they_are_held(shape: AttentionShape, ours: bool) -> None:
    one = model()
    branch = FAMILY.read(one).branches[0]
    w = FAMILY.weights(one, branch)
    assert isinstance(w, AttentionWeights) and w.kb_HK is None and w.scale == 0.3
    h, k, v = shape.heads, shape.qk, shape.vo
    assert w.qb_HK is not None and w.vb_HV is not None
    smaller = replace(
        w,
        q_HKD=w.q_HKD[:h, :k],
        k_HKD=w.k_HKD[:h, :k],
        v_HVD=w.v_HVD[:h, :v],
        o_DHV=w.o_DHV[:, :h, :v],
        qb_HK=w.qb_HK[:h, :k],
        vb_HV=w.vb_HV[:h, :v],
    )
    masks = {"query": (h, k), "key": (h, k), "context": (h, v)}
    edits = []
    for site, (heads, dims) in masks.items():
        mask = torch.zeros(4, 8)
        mask[:heads, :dims] = 1
        edits.append((FAMILY.hook_points(one, branch)[site], lambda x, mask=mask: x * mask))
    with attached(one, edits):
        expected = one(X)
    FAMILY.assign_(one, branch, smaller)
    assert isinstance(one.get_submodule(branch.id), SlimAttention) is ours
    assert torch.allclose(one(X), expected, atol=1e-5)
    assert torch.allclose(walked(one), expected, atol=1e-5)
    assert FAMILY.read(one).cost() == counted(one, (3, 32, 32))
    assert FAMILY.read(one).branches[0].shape == shape


@torch.no_grad()
def test_branches_go_and_constants_stay() -> None:
    one = model()
    attention, mlp = FAMILY.read(one).branches[2:]
    w = FAMILY.weights(one, mlp)
    assert isinstance(w, MlpWeights) and w.shape == MlpShape(hidden=48)
    constant_D = torch.randn(32)
    silent = [(FAMILY.hook_points(one, attention)["update"], lambda x: 0 * x)]
    with attached(one, silent):
        x = FAMILY.embed(one, X)
        for branch in FAMILY.read(one).branches:
            x = FAMILY.through(one, branch)(x)
            x = x + constant_D if branch.id == attention.id else x
        expected = FAMILY.head(one, x)
    FAMILY.add_constant_(one, attention, constant_D)
    FAMILY.drop_(one, {attention.id})
    assert torch.allclose(one(X), expected, atol=1e-4)
    assert FAMILY.read(one).cost() == counted(one, (3, 32, 32))
    FAMILY.drop_(one, {b.id for b in FAMILY.read(one).branches})
    assert torch.equal(one(X), FAMILY.head(one, FAMILY.embed(one, X)))


@torch.no_grad()
def test_the_stream_is_turned_and_made_narrower() -> None:
    one = model()
    expected = one(X)
    assert FAMILY.why_not_rotate(one) is None
    basis_DD, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    FAMILY.rotate_(one, basis_DD)
    assert torch.allclose(one(X), expected, atol=1e-4)
    FAMILY.narrow_(one, FAMILY.read(one).streams[0], torch.arange(20))
    assert FAMILY.read(one).width == 20 and torch.allclose(walked(one), one(X), atol=1e-5)
    assert FAMILY.read(one).cost() == counted(one, (3, 32, 32))
