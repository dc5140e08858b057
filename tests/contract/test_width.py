"""A narrower stream: still channels go without loss, files load, graphs export, groups mix."""

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.derived.members import members_of
from secateur.models.family import family_of, read
from secateur.models.norms import HeldNorm
from secateur.models.outputs import outputs_of
from secateur.models.types import AttentionShape
from secateur.statistics import Statistics, observe
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.storage.spec import read_spec
from secateur.surgery.cut import cut_
from secateur.verbs.prune import prune
from tests.contract.cases import NARROW_CASES, plan_for
from tests.contract.test_refusals import Untouched
from tests.hosts import HOSTS, anatomy_of, build, images_for, unused
from tests.storage.tiny import host as storable

STILL = ("vit", "deit_distilled", "deit3", "dinov2_registers", "vit_average_pool", "vit_swiglu")
FINE = {"width": 1, "qk": 2, "vo": 2, "hidden": 4, "heads": 1}


@torch.no_grad()
def still_(model: nn.Module, channels: list[int], value: float) -> None:
    """Let these channels of the stream carry one value from the embedding to the head."""
    index = torch.tensor(channels)
    parts = [model.patch_embed.proj]
    for block in model.blocks:
        parts += [block.attn.proj, block.mlp.fc2]
    for part in parts:
        part.weight[index] = 0
        if part.bias is not None:
            part.bias[index] = 0
    tokens = [getattr(model, name, None) for name in ("cls_token", "reg_token", "dist_token")]
    for token in tokens:
        if token is not None:
            token[..., index] = 0
    model.pos_embed[..., index] = 0
    if value:
        model.patch_embed.proj.bias[index] = value
        for token in tokens:
            if token is not None:
                token[..., index] = value


def without(model: nn.Module, channels: list[int]) -> Plan:
    """The plan that removes these channels only."""
    anatomy = read(model)
    kept = tuple(sorted(set(range(anatomy.width)) - set(channels)))
    units = {"stream": {"width": kept}}
    return Plan(shapes=anatomy.shapes, widths={"stream": len(kept)}, units=units)


def seen(model: nn.Module) -> Statistics:
    images = images_for(model, 8, seed=1).to(next(model.parameters()).dtype)
    return observe(model, as_batches(images, 4), ("stream_sums",))


@pytest.mark.parametrize("name", [*STILL, "aimv2"])
@pytest.mark.parametrize("value", [0.0, 0.7, -1.3])
@torch.no_grad()
def test_channels_that_stand_still_go_without_loss(name: str, value: float) -> None:
    if name == "aimv2" and value:
        pytest.skip("without biases, readers cannot carry what an RMS norm makes of a constant")
    model = build(name).double()
    gone = [1, 4, 5, 17, 30]
    still_(model, gone, value)
    x = images_for(model).double()
    expected = model(x)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model)
    cut_(plain, without(model, gone), None, "none")
    cut_(exact, without(model, gone), seen(model), "mean")
    assert float((exact(x) - expected).abs().max()) <= 1e-10
    assert float((plain(x) - expected).abs().max()) > 1e-3, "plain removal was no different"
    assert read(exact).cost() == anatomy_of(name).cost(read(exact).shapes, {"stream": 27})


@pytest.mark.parametrize("name", STILL)
@torch.no_grad()
def test_one_channel_after_the_other_is_as_good_as_all_at_once(name: str) -> None:
    model = build(name).double()
    still_(model, [3, 4, 20], 0.5)
    x = images_for(model).double()
    expected = model(x)
    for channel in (20, 4, 3):
        cut_(model, without(model, [channel]), seen(model), "least_squares")
    assert float((model(x) - expected).abs().max()) <= 1e-10
    norms = [module for module in model.modules() if isinstance(module, HeldNorm)]
    assert norms and all(norm.missing == 3 for norm in norms)


@torch.no_grad()
def test_scales_of_zero_do_not_hinder() -> None:
    model = build("vit")
    model.blocks[1].norm1.weight[::3] = 0
    model.norm.weight[2] = 0
    still_(model, [1, 3], 0.4)
    x = images_for(model)
    expected = model(x)
    cut_(model, without(model, [1, 3]), seen(model), "mean")
    assert float((model(x) - expected).abs().max()) <= 1e-5


@torch.no_grad()
def test_holding_channels_at_their_means_beats_forgetting_them() -> None:
    better = 0
    for name in STILL:
        model = build(name)
        x = images_for(model, 8, seed=5)
        for writer in (model.patch_embed.proj, model.blocks[0].attn.proj, model.blocks[2].mlp.fc2):
            writer.weight[::4] *= 0.05
        gone = list(range(0, 32, 4))
        plain, held = copy.deepcopy(model), copy.deepcopy(model)
        cut_(plain, without(model, gone), None, "none")
        cut_(held, without(model, gone), seen(model), "mean")
        better += float((held(x) - model(x)).norm()) < float((plain(x) - model(x)).norm())
    assert better >= len(STILL) - 1


def test_holding_needs_evidence() -> None:
    model = build("vit")
    with pytest.raises(UserError, match="stream becomes narrower without statistics"):
        cut_(model, without(model, [0]), None, "mean")


@pytest.mark.parametrize(("name", "group"), NARROW_CASES)
def test_gradients_reach_what_is_left(name: str, group: str) -> None:
    model = build(name).train()
    plan = plan_for(anatomy_of(name), group)
    needs = ("hidden_moments", "context_moments", "update_mean", "stream_sums")
    statistics = observe(model, as_batches(images_for(model), 2), needs)
    cut_(model, plan, statistics, "least_squares")
    outputs_of(model(images_for(model))).square().sum().backward()
    idle = unused(build(name))
    for path, parameter in model.named_parameters():
        assert parameter.is_leaf and (parameter.grad is None) is (path in idle), path


@pytest.mark.parametrize("repair", ["none", "mean"])
@torch.no_grad()
def test_narrow_models_load_again(repair: str, tmp_path: Path) -> None:
    model = storable("vit")
    x = images_for(model)
    result = prune(
        model, images_for(model, 8), "60% width, 50% hidden, 50% qk", preset="magnitude",
        repair=repair, align=FINE, minimum=FINE,
    )  # fmt: skip
    result.save(tmp_path / "small")
    spec = read_spec(tmp_path / "small")
    anatomy = read(model)
    assert spec.widths == {"stream": int(0.6 * anatomy.width)}
    assert len(spec.held_norms) == (0 if repair == "none" else len(anatomy.branches) + 1)
    assert "channels" in (tmp_path / "small" / "README.md").read_text()
    again = load(tmp_path / "small")
    assert torch.allclose(again(x), result.model(x), rtol=0, atol=1e-6)
    assert read(again).cost() == result.cost
    twice = prune(
        again, images_for(model, 8), "70% width", preset="magnitude", repair=repair,
        align=FINE, minimum=FINE,
    )  # fmt: skip
    save(twice.model, tmp_path / "less", base=base_of(model), provenance={}, results={})
    assert torch.allclose(load(tmp_path / "less")(x), twice.model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("repair", ["none", "mean"])
@torch.no_grad()
def test_narrow_models_export(repair: str, tmp_path: Path) -> None:
    model = build("deit3")
    plan = plan_for(anatomy_of("deit3"), "everything and width")
    needs = ("hidden_energies", "context_energies", "update_mean", "stream_sums")
    statistics = observe(model, as_batches(images_for(model), 2), needs)
    cut_(model, plan, statistics, "none" if repair == "none" else "mean")
    x = images_for(model)
    torch.onnx.export(model, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(x), rtol=0, atol=1e-4)
    program = torch.export.export(model, (x,)).module()
    assert torch.allclose(program(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("allocation", ["uniform", "ranking", "knapsack"])
@pytest.mark.parametrize("unit", ["macs", "params"])
@torch.no_grad()
def test_width_competes_with_all_other_groups(allocation: str, unit: str) -> None:
    model = build("deit3")
    result = prune(
        model, images_for(model, 8), f"55% {unit}", preset="magnitude", allocation=allocation,
        groups=["width", "hidden", "qk", "vo", "heads"], align=FINE, minimum=FINE, exact_tail=False,
    )  # fmt: skip
    amount = getattr(result.cost, unit) / getattr(result.before.cost(), unit)
    assert 0.5 < amount <= 0.55
    assert result.cost == result.before.cost(result.plan.shapes, result.plan.widths)
    assert result.cost.params == sum(p.numel() for p in result.model.parameters())
    assert bool(torch.isfinite(result.model(images_for(model))).all())
    if allocation == "uniform":
        assert result.plan.widths["stream"] < result.before.width


@torch.no_grad()
def test_widths_are_aligned_and_not_too_small() -> None:
    model = build("vit")
    calibration = images_for(model, 4)
    halved = prune(model, calibration, "50% width", preset="magnitude")
    assert halved.after.width == 16
    with pytest.raises(UserError, match="smallest reachable is 50% width"):
        prune(model, Untouched(), "40% width", preset="magnitude")
    kept = prune(
        model, calibration, "90% macs", preset="magnitude", groups=["width", "hidden"],
        protect=["stream"],
    )  # fmt: skip
    assert kept.after.width == 32


@torch.no_grad()
def test_record_and_report_tell_the_width(tmp_path: Path) -> None:
    model = storable("vit")
    result = prune(model, images_for(model, 4), "50% width", preset="magnitude", minimum=FINE)
    record = result.record()
    assert record["width"] == {"dense": result.before.width, "pruned": result.after.width}
    inside = sum(branch["macs"]["pruned"] for branch in record["branches"])
    ends = result.before.ends_cost(result.plan.widths).macs
    assert inside + ends == record["macs"]["pruned"]
    result.save(tmp_path / "small")
    words = f"Stream width {result.before.width} → {result.after.width}"
    assert words in (tmp_path / "small" / "report.html").read_text()


@pytest.mark.parametrize("name", ["vit_attention_pool", "vit_refined_pool"])
def test_pooling_heads_that_attend_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(UserError, match="pooling head"):
        prune(model, Untouched(), "50% width", preset="magnitude")


def test_engines_and_budgets_that_know_no_width_are_refused() -> None:
    model = build("vit")
    with pytest.raises(UserError, match="'spectral' cannot make the residual stream narrower"):
        prune(model, Untouched(), "50% width")
    with pytest.raises(UserError, match="in ms cannot weigh 'width'"):
        prune(model, Untouched(), "2x faster", preset="magnitude", groups=["width", "qk"])


@pytest.mark.parametrize("name", [name for name in HOSTS if len(anatomy_of(name).streams) == 1])
def test_members_have_one_row_per_channel(name: str) -> None:
    model, anatomy = build(name), anatomy_of(name)
    family = family_of(model)
    (stream,) = anatomy.streams
    found = family.stream_weights(model, stream)
    names = {branch.id for branch in anatomy.branches}
    members = members_of(family.statement, model, 0)
    assert set(found.writers) == names | {members.name}
    assert set(found.readers) == names | set(members.heads)
    for matrix in [*found.writers.values(), *found.readers.values()]:
        assert matrix.shape[0] == anatomy.width and matrix.ndim == 2
    first = anatomy.branches[0]
    assert isinstance(first.shape, AttentionShape)
    scale: Tensor | None = family.writer_scale(model, first)
    writer = family.weights(model, first).o_DHV.flatten(1)
    expected = writer if scale is None else scale[:, None] * writer
    assert torch.equal(found.writers[first.id], expected)


def test_narrow_models_are_polished_towards_the_channels_they_kept() -> None:
    model = build("deit3")
    calibration = images_for(model, 24)
    request = {"preset": "magnitude", "align": FINE, "minimum": FINE, "batch_size": 8}
    result = prune(model, calibration, "80% width, 75% hidden", polish="12 steps", **request)
    assert result.polish is not None and result.polish.steps == 12
    assert result.polish.kl_after <= result.polish.kl_before
