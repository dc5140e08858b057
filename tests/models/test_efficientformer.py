"""What is particular to EfficientFormer: grids, batch norms, position biases, constants, caches."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from timm.models.efficientformer import EfficientFormer
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.caches import copy_of, forget_cached_
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.models.modules import ShiftedReLU
from secateur.models.types import Cost
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.statistics import observe
from secateur.surgery.cut import cut_
from secateur.training.polish import PolishSettings, polish_
from secateur.training.run_length import parse_run_length
from tests.hosts import anatomy_of, build, efficientformer, images_for

FAST = PolishSettings(learning_rate=3e-3, layerwise=0.0)


def test_the_anatomy_of_a_small_member() -> None:
    anatomy = anatomy_of("efficientformer_grids")
    assert anatomy.input_size == (3, 112, 112)
    assert [(b.id, b.stage, b.width, b.tokens) for b in anatomy.branches] == [
        ("stages.0.blocks.0.mlp", 0, 8, 28 * 28),
        ("stages.1.blocks.0.mlp", 1, 16, 14 * 14),
        ("stages.1.blocks.1.mlp", 1, 16, 14 * 14),
        ("stages.2.blocks.1.token_mixer", 2, 24, 49),
        ("stages.2.blocks.1.mlp", 2, 24, 49),
        ("stages.2.blocks.2.token_mixer", 2, 24, 49),
        ("stages.2.blocks.2.mlp", 2, 24, 49),
    ]
    assert anatomy.blocks[0].branches == ("stages.0.blocks.0.mlp",)
    assert [(s.id, s.width, s.stage) for s in anatomy.streams] == [
        ("stages.0", 8, 0),
        ("stages.1", 16, 1),
        ("stages.2", 24, 2),
    ]


def test_costs_by_hand() -> None:
    """A grid MLP: two 1x1 convolutions with biases and batch norms; attention: 4 heads, 8/8/16."""
    first, *_, attention, _ = anatomy_of("efficientformer_grids").branches
    params = 8 * 16 + 16 + 2 * 16 + 16 * 8 + 8 + 2 * 8 + 8
    assert first.cost(first.shape) == Cost(params=params, macs=28 * 28 * 2 * 8 * 16)
    inner, context = 4 * (8 + 8 + 16), 4 * 16
    params = 24 * inner + inner + context * 24 + 24 + 4 * 49 + 2 * 24 + 24
    macs = 49 * 24 * inner + 4 * 49 * 49 * (8 + 16) + 49 * context * 24
    assert attention.cost(attention.shape) == Cost(params=params, macs=macs)


@torch.no_grad()
def test_canonical_grid_mlps_compute_what_the_host_does() -> None:
    model = build("efficientformer")
    branch = read(model).branches[1]
    w = family_of(model).weights(model, branch)
    assert isinstance(w, MlpWeights) and w.unit_FT is not None
    mlp = model.get_submodule(branch.id)
    x_BDHW = torch.randn(2, 16, 3, 3)
    x_BND = x_BDHW.flatten(2).mT
    scale_F, shift_F, mean_F, var_F = w.unit_FT.unbind(1)
    read_BNF = x_BND @ w.readers_FD[0].T + w.reader_biases_F[0]
    hidden_BNF = mlp.act((read_BNF - mean_F) / (var_F + 1e-5).sqrt() * scale_F + shift_F)
    written_BND = hidden_BNF @ w.w2_DF.T + w.b2_D
    expected = mlp.norm2(written_BND.mT.unflatten(2, (3, 3)))
    assert torch.allclose(mlp(x_BDHW), expected, atol=1e-5)
    # The update moves by writer_scale times what the writer gives.
    scale_D = family_of(model).writer_scale(model, branch)
    ls2 = model.get_submodule("stages.0.blocks.1.ls2")
    more = mlp.norm2((written_BND + 1).mT.unflatten(2, (3, 3)))
    assert torch.allclose((ls2(more) - ls2(expected))[0, :, 0, 0], scale_D, atol=1e-5)


@torch.no_grad()
def test_canonical_attention_has_the_position_biases_of_each_head() -> None:
    model = build("efficientformer")
    branch = read(model).branches[3]
    w = family_of(model).weights(model, branch)
    assert isinstance(w, AttentionWeights)
    x = torch.randn(2, 49, 24)
    q, k, v = (
        torch.einsum("bnd,hkd->bhnk", x, weight) + bias[:, None]
        for weight, bias in ((w.q_HKD, w.qb_HK), (w.k_HKD, w.kb_HK), (w.v_HVD, w.vb_HV))
    )
    assert w.logit_bias_HNN is not None and w.logit_bias_HNN.shape == (4, 49, 49)
    context = (w.scale * q @ k.mT + w.logit_bias_HNN).softmax(-1) @ v
    expected = torch.einsum("bhnv,dhv->bnd", context, w.o_DHV) + w.ob_D
    assert torch.allclose(model.get_submodule(branch.id)(x), expected, atol=1e-5)


@torch.no_grad()
def test_attention_moments_weigh_keys_as_the_biased_softmax_does() -> None:
    """A head whose bias sees one offset only attends to single keys, whose spread is nothing."""
    model = build("efficientformer")
    branch = read(model).branches[3]
    attn = model.get_submodule(branch.id)
    attn.attention_biases.zero_()
    attn.attention_biases[0, 0] = 1e4
    forget_cached_(model)
    batches = as_batches(images_for(model, 4), 2)
    k_gram = observe(model, batches, ("attention_moments",)).of("attention_moments", branch.id)
    spread_H = k_gram["k_gram"].diagonal(dim1=1, dim2=2).sum(1)
    assert float(spread_H[0]) < 1e-3 * float(spread_H[1])


@torch.no_grad()
def test_a_constant_before_everything_goes_behind_the_stem() -> None:
    model, x = build("efficientformer"), images_for(build("efficientformer"))
    anatomy = read(model)
    plan = Plan(shapes={**anatomy.shapes, anatomy.branches[0].id: None})
    cut_(model, plan, observe(model, as_batches(x, 2), ("update_mean",)), "mean")
    assert isinstance(model.stem.act2, ShiftedReLU)
    predicted = anatomy.cost(plan.shapes).params + anatomy.branches[0].added_by_repair(None).params
    assert read(model).cost().params == predicted == sum(p.numel() for p in model.parameters())


def test_only_the_first_stage_needs_new_biases_when_it_loses_a_branch() -> None:
    added = [b.added_by_repair(None).params for b in anatomy_of("efficientformer").branches]
    assert added == [16, 16, 0, 0, 0, 0, 0, 0, 0]


@torch.no_grad()
def test_models_that_ran_with_gradients_can_be_copied() -> None:
    model, x = build("efficientformer"), images_for(build("efficientformer"))
    with torch.enable_grad():
        expected = model(x).detach()
    assert torch.equal(copy_of(model)(x), expected)


def test_a_polish_sees_the_position_biases_it_trains() -> None:
    model = build("efficientformer")
    student = build("efficientformer")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    batches = as_batches(images_for(model, 32), 8)
    report = polish_(student, model, batches, parse_run_length("20 steps"), settings=FAST)
    assert report.steps == 20 and report.kl_after < 0.8 * report.kl_before
    x = images_for(model)
    fresh = build("efficientformer")
    fresh.load_state_dict(student.state_dict())
    assert torch.equal(student(x), fresh(x))


@torch.no_grad()
def test_heads_take_their_position_biases_with_them() -> None:
    model = build("efficientformer")
    anatomy = read(model)
    branch = anatomy.branches[3]
    table = model.get_submodule(branch.id).attention_biases.clone()
    shapes = anatomy.shapes | {branch.id: replace(branch.shape, heads=2)}
    cut_(model, Plan(shapes=shapes, units={branch.id: {"heads": (1, 3)}}), None, "none")
    assert torch.equal(model.get_submodule(branch.id).attention_biases, table[[1, 3]])


@torch.no_grad()
def test_taps_of_grids_work_on_any_memory_layout() -> None:
    model = build("efficientformer").to(memory_format=torch.channels_last)
    x = images_for(model).to(memory_format=torch.channels_last)
    branch = read(model).branches[0]
    hook_point = family_of(model).hook_points(model, branch)["update"]

    def nothing(update_BND: Tensor) -> Tensor:
        return torch.zeros_like(update_BND)

    with attached(model, [(hook_point, nothing)]):
        masked = model(x)
    cut_(model, Plan(shapes={**read(model).shapes, branch.id: None}), None, "none")
    assert torch.allclose(model(x), masked, atol=1e-5)


def _mixer(model: EfficientFormer) -> None:
    model.stages[0].blocks[0].token_mixer = nn.Identity()


def _block(model: EfficientFormer) -> None:
    model.stages[0].blocks[1] = nn.Identity()


def _mlp(model: EfficientFormer) -> None:
    model.stages[0].blocks[1].mlp = nn.Identity()


def _norm(model: EfficientFormer) -> None:
    model.stages[0].blocks[1].mlp.norm1 = nn.GroupNorm(2, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_mixer, r"stages\.0\.blocks\.0\.token_mixer is a Identity"),
        (_block, r"stages\.0\.blocks\.1 is a Identity"),
        (_mlp, r"stages\.0\.blocks\.1\.mlp is a Identity"),
        (_norm, r"stages\.0\.blocks\.1\.mlp\.norm1 is a GroupNorm"),
    ],
)
def test_members_that_cannot_be_read_are_refused_by_name(
    change: Callable[[nn.Module], None], words: str
) -> None:
    model = efficientformer()
    change(model)
    with pytest.raises(UserError, match=words):
        read(model)
