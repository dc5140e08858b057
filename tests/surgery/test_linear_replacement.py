"""Linear layers in place of dropped ones: least squares, priced, saved, on the stream's way."""

import copy
import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.costs import cost_function
from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.models.family import family_of, read
from secateur.models.modules import LinearStandIn
from secateur.models.types import Shapes
from secateur.statistics import Sums, observe
from secateur.statistics.gaps import HELD, gap_moments
from secateur.statistics.kinds.updates import add_joint_moments_
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.storage.spec import read_spec
from secateur.surgery.cut import cut_
from secateur.surgery.replace import LINEAR_RIDGES, gaps_of, linear_map
from secateur.verbs.inspect import inspect
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import HOSTS, anatomy_of, build, images_for, shared
from tests.storage.tiny import host as storable

STANDING = [
    name
    for name in HOSTS
    if name != "vit_post_norm"
    and family_of(shared(name)).one_stream
    and anatomy_of(name).blocks[0].id == "blocks.0"
]
ONE = {"blocks.1.attn"}
RUN = {"blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "blocks.2.mlp"}
"""Two gaps: three branches across blocks, and the last one."""
FINE = {"width": 1, "qk": 2, "vo": 2, "hidden": 4, "heads": 1}


def cut_with(model: nn.Module, gone: set[str], images: Tensor) -> nn.Module:
    """A copy with linear layers where these branches were, through the steps of a run."""
    anatomy = read(model)
    shapes: Shapes = {b.id: None if b.id in gone else b.shape for b in anatomy.branches}
    moments = gap_moments(model, as_batches(images, 4), gaps_of(anatomy, shapes))
    smaller = copy.deepcopy(model)
    cut_(smaller, Plan(shapes=shapes), None, "none", "linear", moments)
    return smaller


def own(name: str, gone: set[str]) -> set[str]:
    """The branches of a host that stand where these do in `vit`."""
    ids = [[branch.id for branch in anatomy_of(host).branches] for host in ("vit", name)]
    return {mine for there, mine in zip(*ids, strict=True) if there in gone}


def stream_after(model: nn.Module, branch_id: str, images: Tensor) -> Tensor:
    """The stream of a dense model after a branch."""
    family = family_of(model)
    x_BND = family.embed(model, images)
    for branch in read(model).branches:
        x_BND = family.through(model, branch)(x_BND)
        if branch.id == branch_id:
            break
    return x_BND


def test_gaps_are_runs_of_dropped_branches() -> None:
    anatomy = anatomy_of("vit")
    shapes: Shapes = {b.id: None if b.id in RUN else b.shape for b in anatomy.branches}
    assert gaps_of(anatomy, shapes) == {
        "blocks.0.mlp": ("blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"),
        "blocks.2.mlp": ("blocks.2.mlp",),
    }


@pytest.mark.parametrize("name", STANDING)
@torch.no_grad()
def test_a_window_is_guessed_as_well_as_a_line_can(name: str) -> None:
    """The layer gives the least squares guess of all that the run adds, from behind the norm."""
    model = build(name)
    images = images_for(model, 40)
    blocks = anatomy_of(name).blocks
    smaller = cut_with(model, set(blocks[1].branches), images)
    before, after = (stream_after(model, blocks[i].branches[1], images) for i in (0, 1))
    target_TD = (after - before).flatten(0, 1).double()
    first = anatomy_of(name).branch(blocks[1].branches[0])
    norm = model.get_submodule(family_of(model).hook_points(model, first)["stream"].module)
    seen_TD = norm(before).flatten(0, 1).double()
    x_TD = torch.cat([seen_TD, torch.ones_like(seen_TD[:, :1])], 1)
    least = torch.linalg.lstsq(x_TD, target_TD, driver="gelsd").solution
    residual = float((target_TD - x_TD @ least).square().sum())
    family, kept = family_of(smaller), read(smaller).branch(blocks[2].branches[0])
    found = (family.arrive(smaller, kept, before) - after).double().square().sum()
    assert residual * (1 - 1e-6) <= float(found) <= residual * 1.1
    assert float(found) < 0.9 * float((target_TD - target_TD.mean(0)).square().sum())


@pytest.mark.parametrize("name", ["vit", "deit3", "dinov2_registers", "clip", "aimv2"])
@torch.no_grad()
def test_a_linear_layer_goes_without_loss(name: str) -> None:
    model = build(name)
    for block in model.blocks:
        block.mlp.act = nn.Identity()
    if name == "aimv2":
        # A gated MLP is linear where its gate stands still.
        for block in model.blocks:
            block.mlp.fc1_g.weight.zero_()
            block.mlp.fc1_g.bias = nn.Parameter(torch.ones(block.mlp.fc1_g.out_features))
    images = images_for(model, 40)
    smaller = cut_with(model, {"blocks.0.mlp", "blocks.2.mlp"}, images)
    assert float((smaller(images) - model(images)).abs().max()) <= 1e-3
    without = copy.deepcopy(model)
    shapes: Shapes = {
        b.id: None if b.id.endswith(("0.mlp", "2.mlp")) else b.shape for b in read(model).branches
    }
    cut_(without, Plan(shapes=shapes), None, "none", "nothing")
    assert float((without(images) - model(images)).abs().max()) > 1e-2


def joint(x_TD: Tensor, y_TD: Tensor) -> Sums:
    sums: Sums = {}
    add_joint_moments_(sums, x_TD[None], y_TD[None])
    return sums


def test_the_ridge_is_what_images_held_out_ask_for() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(60, 16, generator=generator)
    true_DD = torch.randn(16, 16, generator=generator)
    noise_TD = torch.randn(60, 16, generator=generator)

    def sums(y_TD: Tensor) -> Sums:
        held = joint(x_TD[40:], y_TD[40:])
        return joint(x_TD[:40], y_TD[:40]) | {f"{HELD}{name}": v for name, v in held.items()}

    exact = linear_map(sums(x_TD @ true_DD.T + 3), "b")
    assert torch.allclose(exact.w_DS.float(), true_DD, atol=1e-3)
    assert torch.allclose(exact.b_D, torch.full((16,), 3.0, dtype=torch.float64), atol=1e-3)
    of_noise_DD = linear_map(sums(noise_TD), "b").w_DS
    centred_TD = (x_TD - x_TD.mean(0)).double()
    cov_DD = centred_TD.T @ centred_TD / 60
    level = LINEAR_RIDGES[-1] * float(cov_DD.diagonal().mean())
    cross_DD = centred_TD.T @ (noise_TD - noise_TD.mean(0)).double() / 60
    largest = torch.linalg.solve(cov_DD + level * torch.eye(16, dtype=torch.float64), cross_DD).T
    assert torch.allclose(of_noise_DD, largest, atol=1e-5)


@torch.no_grad()
def test_moments_do_not_depend_on_batches() -> None:
    model = build("vit")
    images = images_for(model, 13)
    shapes: Shapes = {b.id: None if b.id in RUN else b.shape for b in anatomy_of("vit").branches}
    gaps = gaps_of(anatomy_of("vit"), shapes)
    one, other = (gap_moments(model, as_batches(images, size), gaps) for size in (13, 3))
    for first in gaps:
        assert one[first].keys() == other[first].keys()
        for name, value in one[first].items():
            assert torch.allclose(value, other[first][name], rtol=1e-4, atol=1e-2), name
        assert float(one[first][f"{HELD}count"]) == 2 * anatomy_of("vit").tokens


@pytest.mark.parametrize("gone", [ONE, RUN], ids=["one", "runs"])
@pytest.mark.parametrize("name", STANDING)
@torch.no_grad()
def test_it_stands_in_the_way_of_the_stream_and_is_counted(name: str, gone: set[str]) -> None:
    model = build(name)
    images = images_for(model, 16)
    count, gone = len(gone) - (gone is RUN) * 2, own(name, gone)
    smaller = cut_with(model, gone, images)
    family, anatomy = family_of(smaller), read(smaller)
    assert [b.id for b in anatomy.branches] == [
        b.id for b in anatomy_of(name).branches if b.id not in gone
    ]
    layers = [m for m in smaller.modules() if isinstance(m, LinearStandIn)]
    assert len(layers) == len(anatomy.stand_ins) == count
    x_BND = family.embed(smaller, images)
    for branch in anatomy.branches:
        arrived_BND = family.arrive(smaller, branch, x_BND)
        x_BND = family.through(smaller, branch)(x_BND)
        assert torch.equal(family.alone(smaller, branch)(arrived_BND), x_BND)
    assert torch.allclose(family.head(smaller, x_BND), smaller(images), atol=1e-5)
    assert counted(smaller, anatomy.input_size) == anatomy.cost()
    statistics = observe(smaller, as_batches(images, 4), ["update_mean", "stream_gram"])
    assert statistics.images == 16


@pytest.mark.parametrize("name", STANDING)
@torch.no_grad()
def test_models_with_one_can_be_pruned_again(name: str) -> None:
    model = build(name)
    images = images_for(model, 16)
    smaller = cut_with(model, own(name, RUN - {"blocks.2.mlp"}), images)
    anatomy = read(smaller)
    first, last_attention = anatomy.blocks[0].id, anatomy_of(name).branches[4].id
    (stand_in,) = own(name, {"blocks.0.mlp"})
    if any("hidden" in branch.groups for branch in anatomy.branches):
        again = prune(smaller, images, "50% hidden", preset="energy", repair="none", align=FINE)
        assert again.cost == again.before.cost(again.plan.shapes)
        assert counted(again.model, anatomy.input_size) == again.cost
        assert [s.id for s in again.after.stand_ins] == [s.id for s in anatomy.stand_ins]
    # The mean of what is dropped behind a stand-in goes into its bias.
    last = prune(smaller, images, "drop 1 attention", preset="layer_drop", protect=[first])
    assert last_attention not in read(last.model).shapes
    bias = [model.get_submodule(stand_in).bias for model in (smaller, last.model)]
    assert not torch.equal(*bias)
    if anatomy.streams:
        narrow = prune(smaller, images, "50% width", preset="magnitude", repair="mean")
        assert narrow.cost == narrow.before.cost(narrow.plan.shapes, narrow.plan.widths)
        assert counted(narrow.model, anatomy.input_size) == narrow.cost
        assert bool(narrow.model(images).isfinite().all())


@torch.no_grad()
def test_layers_and_channels_go_in_one_cut() -> None:
    model = build("deit3")
    images = images_for(model, 32)
    request = {
        "align": FINE,
        "minimum": FINE,
        "replacement": "linear",
        "protect": ("blocks.0.attn",),
    }
    wide = prune(model, images, "drop 2 layers", preset="layer_drop", **request)
    both = prune(model, images, "drop 2 layers, 97% width", preset="slicegpt", **request)
    # One component of a stream behind LayerNorms is empty, so nothing is lost with it; the ridge
    # is another one in each basis.
    assert both.after.width == 31 and both.plan.shapes == wide.plan.shapes
    assert torch.allclose(both.model(images), wide.model(images), atol=2e-2)


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("groups", [["branch"], ["block"], ["branch", "hidden"]], ids=str)
def test_budgets_see_what_it_costs(groups: list[str], unit: str) -> None:
    model = build("vit")
    result = prune(
        model, images_for(model, 16), f"80% {unit}", preset="layer_drop", groups=groups,
        replacement="linear", align=FINE, minimum=FINE,
    )  # fmt: skip
    assert result.budget_use is not None
    assert result.budget_use.reached <= result.budget_use.limit
    assert counted(result.model, result.before.input_size) == result.cost
    anatomy = result.before
    sizes = {("blocks.1", "block"): 0} if groups == ["block"] else {("blocks.1.mlp", "branch"): 0}
    priced = cost_function(anatomy, unit, replaced=True)(sizes)
    gone = {"blocks.1.attn", "blocks.1.mlp"} if groups == ["block"] else {"blocks.1.mlp"}
    cut = read(cut_with(model, gone, images_for(model, 16)))
    assert priced == getattr(cut.cost(), unit)
    assert priced > cost_function(anatomy, unit)(sizes)


@pytest.mark.parametrize("name", ["vit", "no_writer_bias", "dinov2_swiglu", "clip", "siglip"])
@torch.no_grad()
def test_it_is_saved_as_plain_data(name: str, tmp_path: Path) -> None:
    model = storable(name)
    generator = torch.Generator().manual_seed(0)
    size = read(model).input_size
    x = torch.randn(12, *size, generator=generator)
    result = prune(model, x, "drop 3 layers", preset="nbl", batch_size=4)
    result.save(tmp_path / "small")
    spec = read_spec(tmp_path / "small")
    assert spec.stand_ins == [layer.id for layer in result.after.stand_ins] != []
    assert all(spec.shapes[name] is None for name in spec.stand_ins)
    again = load(tmp_path / "small")
    assert torch.allclose(again(x), result.model(x), rtol=0, atol=1e-6)
    assert read(again) == result.after
    assert "a linear layer in its place" in (tmp_path / "small" / "README.md").read_text()
    assert "Linear layers stand in" in (tmp_path / "small" / "report.html").read_text()
    found = inspect(again)
    assert list(found.stand_ins) == spec.stand_ins
    macs = sum(b.macs for b in found.branches) + sum(s["macs"] for s in found.stand_ins.values())
    assert macs + found.ends["macs"] == found.macs
    if read(again).streams:
        narrow = prune(again, x, "50% width", preset="magnitude", repair="mean")
        save(narrow.model, tmp_path / "less", base=base_of(model), provenance={}, results={})
        assert torch.allclose(load(tmp_path / "less")(x), narrow.model(x), rtol=0, atol=1e-6)


def test_specs_that_lie_about_it_are_refused(tmp_path: Path) -> None:
    model = storable("vit")
    x = torch.randn(8, *read(model).input_size)
    prune(model, x, "drop 1 attention", preset="nbl").save(tmp_path / "small")
    path = tmp_path / "small" / "spec.json"
    spec = json.loads(path.read_text())
    for stand_ins, words in (
        ([], "unexpected"),
        ([*spec["stand_ins"], "blocks.0.mlp"], "blocks.0.mlp, which was not dropped"),
        (["blocks.9.mlp"], "blocks.9.mlp, which was not dropped"),
    ):
        path.write_text(json.dumps(spec | {"stand_ins": stand_ins, "checksum": None}))
        with pytest.raises(UserError, match=words):
            load(tmp_path / "small")


@torch.no_grad()
def test_it_exports(tmp_path: Path) -> None:
    model = build("deit3")
    x = images_for(model, 8)
    smaller = cut_with(model, RUN, x)
    torch.onnx.export(smaller, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), smaller(x), rtol=0, atol=1e-4)


def test_gradients_reach_it() -> None:
    model = build("deit3")
    smaller = cut_with(model, RUN, images_for(model, 8)).train()
    smaller(images_for(model)).square().sum().backward()
    for name, parameter in smaller.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name


def test_where_it_cannot_stand_it_is_refused() -> None:
    for name, words in (
        ("efficientformer", "'linear' is not offered for timm EfficientFormer"),
        ("vit_post_norm", "'linear' needs the norm before, but a norm stands behind"),
    ):
        with pytest.raises(UserError, match=words):
            prune(build(name), Untouched(), "drop 1 mlp", preset="nbl")
    assert not family_of(build("efficientformer")).one_stream
    with pytest.raises(UserError, match="time that a budget in ms cannot foresee"):
        prune(build("vit"), Untouched(), "2x faster", preset="nbl")
    with pytest.raises(UserError, match="--replacement linear has no meaning"):
        prune(build("vit"), Untouched(), "drop 1 mlp", replacement="linear")
    standing = cut_with(build("vit"), ONE, images_for(build("vit"), 8))
    with pytest.raises(UserError, match="linear layers stand in for some of its layers"):
        family_of(standing).require_rotatable(standing)


@torch.no_grad()
def test_searches_choose_with_the_mean_in_place() -> None:
    model = build("vit")
    images = images_for(model, 16)
    result = prune(model, images, "drop 2 layers", preset="greedy_drop", replacement="linear")
    assert 1 <= len(result.after.stand_ins) <= 2
    same = prune(model, images, "drop 2 layers", preset="greedy_drop", replacement="mean")
    assert result.plan.shapes == same.plan.shapes
