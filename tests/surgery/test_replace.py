"""Replacements of dropped layers: exact where the layer is what they assume, refused elsewhere."""

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.models.family import Family, family_of, read
from secateur.models.host import host_of
from secateur.models.types import Shapes
from secateur.models.weights import MlpWeights
from secateur.statistics import observe
from secateur.statistics.anchors import anchor_moments
from secateur.surgery.cut import cut_
from secateur.surgery.replace import Replacement, check_replacement, runs_of
from secateur.verbs.prune import prune
from tests.hosts import HOSTS, anatomy_of, build, images_for

LINEAR_HOSTS = [name for name in HOSTS if name != "vit_post_norm"]


def cut_with(
    model: nn.Module, gone: set[str], replacement: Replacement, images: Tensor
) -> nn.Module:
    """A copy without these branches, through the same steps as a run."""
    anatomy = read(model)
    shapes: Shapes = {b.id: None if b.id in gone else b.shape for b in anatomy.branches}
    batches = as_batches(images, 4)
    needs = ["update_mean", "branch_similarity"]
    runs = runs_of(anatomy, shapes) if replacement == "affine" else {}
    smaller = copy.deepcopy(model)
    statistics = observe(model, batches, needs)
    cut_(
        smaller,
        Plan(shapes=shapes),
        statistics,
        "none",
        replacement,
        anchor_moments(model, batches, runs),
    )
    return smaller


def stream_before(model: nn.Module, branch_id: str, images: Tensor) -> Tensor:
    """The stream before a branch of the dense model's numbering."""
    family = family_of(model)
    x_BND = family.embed(model, images)
    for branch in read(model).branches:
        if branch.id == branch_id:
            return x_BND
        x_BND = family.through(model, branch)(x_BND)
    return x_BND


def test_runs_name_the_kept_branch_before_dropped_ones() -> None:
    anatomy = anatomy_of("vit")
    gone = {"blocks.0.attn", "blocks.1.attn", "blocks.1.mlp", "blocks.2.mlp"}
    shapes: Shapes = {b.id: None if b.id in gone else b.shape for b in anatomy.branches}
    assert runs_of(anatomy, shapes) == {
        "blocks.0.mlp": ("blocks.1.attn", "blocks.1.mlp"),
        "blocks.2.attn": ("blocks.2.mlp",),
    }


def anchor_and_run(name: str) -> tuple[str, str, str]:
    """A branch, that right behind it on the same stream, and the one where the next begins."""
    anatomy = anatomy_of(name)
    model, ids = build(name), [branch.id for branch in anatomy.branches]
    family, x_BND = family_of(model), family_of(model).embed(model, images_for(model, 1))
    for one, two, three in zip(ids, ids[1:], ids[2:], strict=False):
        x_BND = family.through(model, anatomy.branch(one))(x_BND)
        after_BND = family.through(model, anatomy.branch(two))(x_BND)
        # WHY: where something stands between two branches, the second is no neighbour.
        if all(
            family.arrive(model, anatomy.branch(b), x) is x
            for b, x in ((two, x_BND), (three, after_BND))
        ):
            return one, two, three
    raise AssertionError(f"{name} has no three neighbours")


@pytest.mark.parametrize("name", LINEAR_HOSTS)
@torch.no_grad()
def test_the_affine_fold_is_the_least_squares_guess(name: str) -> None:
    """Behind the dropped layer the stream misses what no affine map of the anchor's update has."""
    model = build(name)
    images = images_for(model, 24)
    one, two, three = anchor_and_run(name)
    gone = {two}
    smaller = cut_with(model, gone, "affine", images)
    family, branch = family_of(model), anatomy_of(name).branch(one)
    anchor = stream_before(model, two, images) - family.arrive(
        model, branch, stream_before(model, one, images)
    )
    after = stream_before(model, three, images)
    target = (after - stream_before(model, two, images)).flatten(0, 1).double()
    x_TD = torch.cat([anchor.flatten(0, 1), torch.ones_like(anchor.flatten(0, 1)[:, :1])], 1)
    least = torch.linalg.lstsq(x_TD.double(), target).solution
    residual = (target - x_TD.double() @ least).square().sum()
    found = (after - stream_before(smaller, three, images)).double().square().sum()
    assert float(found) == pytest.approx(float(residual), rel=1e-2)
    without = cut_with(model, gone, "nothing", images)
    worse = (after - stream_before(without, three, images)).double().square().sum()
    assert float(found) < float(worse)


@torch.no_grad()
def test_an_affine_layer_goes_without_loss() -> None:
    """A dropped MLP that repeats the update of the one before it, mixed and shifted."""
    model = build("dinov2_registers")
    images = images_for(model, 24)
    family = family_of(model)
    for branch in read(model).branches:
        if branch.id == "blocks.1.attn":
            silence_(model, family, branch.id)
    smaller = cut_with(model, {"blocks.1.attn"}, "affine", images)
    assert torch.allclose(smaller(images), model(images), atol=1e-4)


def silence_(model: nn.Module, family: Family, branch_id: str) -> None:
    """Make a branch add one constant vector, whatever it sees."""
    module = model.get_submodule(branch_id)
    module.proj.weight.zero_()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", ["vit", "deit3", "vit_average_pool"])
@torch.no_grad()
def test_the_scalar_restores_the_length_of_the_stream(name: str) -> None:
    model = build(name)
    images = images_for(model, 8)
    smaller = cut_with(model, {"blocks.1.mlp"}, "scalar", images)
    sums = observe(model, as_batches(images, 4), ["branch_similarity"]).of(
        "branch_similarity", "blocks.1.mlp"
    )
    alpha = float(sums["after_norm"] / sums["stream_norm"])
    # The same by hand: the stream of the model without the layer, made longer behind it.
    plain = cut_with(model, {"blocks.1.mlp"}, "nothing", images)
    family = family_of(plain)
    x_BND = family.embed(plain, images)
    for branch in read(plain).branches:
        if branch.id == "blocks.2.attn":
            x_BND = alpha * x_BND
        x_BND = family.through(plain, branch)(x_BND)
    assert torch.allclose(smaller(images), family.head(plain, x_BND), atol=1e-3)
    before, after = (stream_before(model, f"blocks.{b}", images) for b in ("1.mlp", "2.attn"))
    assert alpha == pytest.approx(float(after.norm(dim=-1).mean() / before.norm(dim=-1).mean()))


@torch.no_grad()
def test_merging_adds_the_differences_from_the_kept_block_itself() -> None:
    model = build("dinov2_registers")
    images = images_for(model)
    gone = {f"blocks.{i}.{part}" for i in (1, 2) for part in ("attn", "mlp")}
    smaller = cut_with(model, gone, "merge", images)
    blocks = [dict(model.get_submodule(f"blocks.{i}").named_parameters()) for i in range(3)]
    merged = dict(smaller.get_submodule("blocks.0").named_parameters())
    assert merged.keys() == blocks[0].keys()
    for name, value in merged.items():
        expected = blocks[1][name] + blocks[2][name] - blocks[0][name]
        assert torch.allclose(value, expected, atol=1e-6), name
        assert not torch.allclose(value, blocks[2][name], atol=1e-3), "only the last block is left"


@torch.no_grad()
def test_equal_blocks_merge_into_themselves() -> None:
    model = build("vit")
    model.get_submodule("blocks.1").load_state_dict(model.get_submodule("blocks.0").state_dict())
    smaller = cut_with(model, {"blocks.1.attn", "blocks.1.mlp"}, "merge", images_for(model))
    for a, b in zip(
        smaller.get_submodule("blocks.0").parameters(),
        model.get_submodule("blocks.0").parameters(),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("replacement", ["nothing", "mean", "scalar", "affine", "merge"])
def test_stand_ins_cost_nothing(replacement: Replacement) -> None:
    model = build("vit")
    result = prune(
        model,
        images_for(model, 16),
        "drop 1 blocks",
        preset="shortgpt",
        replacement=replacement,
        batch_size=4,
    )
    cost = counted(result.model, read(model).input_size)
    assert (cost.macs, cost.params) == (result.cost.macs, result.cost.params)
    expected = result.before.cost({k: s for k, s in result.plan.shapes.items() if s is not None})
    assert (cost.macs, cost.params) == (expected.macs, expected.params)


@pytest.mark.parametrize("replacement", ["scalar", "affine"])
def test_norms_behind_the_writer_are_refused(replacement: Replacement) -> None:
    model = build("vit_post_norm")
    with pytest.raises(UserError, match="a norm stands behind"):
        check_replacement(host_of(model), replacement, {"block"})
    with pytest.raises(UserError, match="a norm stands behind"):
        prune(model, images_for(model), "drop 1 blocks", preset="shortgpt", replacement=replacement)


@torch.no_grad()
def test_a_layer_scale_of_zero_is_no_trouble() -> None:
    model = build("dinov2_registers")
    model.get_parameter("blocks.0.ls2.gamma")[:5] = 0
    images = images_for(model, 16)
    smaller = cut_with(model, {"blocks.1.attn"}, "affine", images)
    assert all(bool(p.isfinite().all()) for p in smaller.parameters())
    weights = family_of(smaller).weights(smaller, read(smaller).branch("blocks.0.mlp"))
    assert isinstance(weights, MlpWeights)


def test_dropped_first_layers_leave_their_mean() -> None:
    model = build("vit")
    images = images_for(model, 8)
    affine = cut_with(model, {"blocks.0.attn"}, "affine", images)
    mean = cut_with(model, {"blocks.0.attn"}, "mean", images)
    assert torch.equal(affine(images), mean(images))
