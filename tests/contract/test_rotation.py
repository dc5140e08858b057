"""A rotated stream: nothing changes at full width, null directions go without loss, files load."""

import copy
import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.methods.rotated import rotated
from secateur.models.derived.members import members_of
from secateur.models.family import family_of, read
from secateur.models.host import host_of
from secateur.models.norms import HeldNorm
from secateur.models.outputs import outputs_of
from secateur.statistics import observe
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.storage.spec import read_spec
from secateur.surgery.cut import cut_
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import HOSTS, anatomy_of, build, images_for, shared, unused, vit
from tests.storage.tiny import host as storable

FINE = {"width": 1, "qk": 2, "vo": 2, "hidden": 4, "heads": 1}
REPAIRS = ("none", "mean", "least_squares")


def why_not(name: str) -> str | None:
    """Why a host cannot be rotated."""
    return family_of(shared(name)).why_not_rotate(shared(name))


TURNING = [name for name in HOSTS if why_not(name) is None]
REFUSED = {
    "vit_attention_pool": "pooling head",
    "vit_refined_pool": "pooling head",
    "vit_no_positions": "a norm writes its embedding",
    "clip": "a norm writes its embedding",
    "hybrid": "a norm writes its embedding",
    "open_clip_vit": "a norm writes its embedding",
    "sam": "how its 'neck' uses the stream",
    "hf_clip": "a norm writes its embedding",
    "hf_siglip_features": "no classifier",
    "hf_aimv2_features": "no classifier",
    "hf_dinov3_features": "no classifier",
    "vit_post_norm": "norms stand behind the branches",
    "swin": "norms between its stages",
    "efficientformer": "one per stage",
    "efficientformer_grids": "one per stage",
}


def random_basis(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise_DD = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise_DD).Q


def turn_(model: nn.Module, basis_DD: Tensor) -> None:
    family_of(model).rotate_(model, basis_DD)


def test_every_host_turns_or_says_why_not() -> None:
    assert set(TURNING) | set(REFUSED) == set(HOSTS) and not set(TURNING) & set(REFUSED)


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_streams_that_cannot_be_rotated_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        prune(build(name), Untouched(), "50% width", preset="slicegpt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TURNING)
@torch.no_grad()
def test_rotations_change_no_output(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    x = images_for(model).to(dtype)
    expected, before = outputs_of(model(x)), read(model)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    basis_DD = random_basis(before.width)
    stream_BND = family_of(model).embed(model, x)
    for turn in (basis_DD, basis_DD.T):
        turn_(model, turn)
        assert float((outputs_of(model(x)) - expected).abs().max()) <= tolerance
        assert read(model) == before
    assert {p.dtype for p in model.parameters()} == {dtype}
    # There and back again, only what every norm takes away is gone.
    found_BND = family_of(model).embed(model, x)
    if name != "aimv2":
        stream_BND = stream_BND - stream_BND.mean(-1, keepdim=True)
    assert torch.allclose(found_BND, stream_BND, atol=1e-4)


@pytest.mark.parametrize("name", TURNING)
@torch.no_grad()
def test_what_is_seen_comes_in_order_of_its_energy(name: str) -> None:
    model = build(name)
    x = images_for(model, 8)
    turned = rotated(host_of(model), as_batches(x, 4))
    assert torch.allclose(outputs_of(turned(x)), outputs_of(model(x)), rtol=0, atol=1e-4)
    x_ED = family_of(turned).embed(turned, x).flatten(0, 1)
    assert float(x_ED[:, 16:].square().sum()) < float(x_ED[:, :16].square().sum())


@torch.no_grad()
def flatten_(model: nn.Module, rank: int) -> None:
    """Let the stream live in a random subspace that no norm's mean touches."""
    width = read(model).width
    basis_DR = random_basis(width, seed=3)[:, :rank]
    basis_DR = basis_DR - basis_DR.mean(0, keepdim=True)
    onto_DD = (basis_DR @ torch.linalg.pinv(basis_DR)).float()
    members = members_of(family_of(model).statement, model, 0)
    for table in members.tables.values():
        table.copy_(table @ onto_DD)
    for step in members.steps:
        if step.scale is not None:
            step.scale.fill_(0.7)
    for writer in (members.writer, *(step.writer for step in members.steps)):
        writer.weight.copy_((onto_DD @ writer.weight.flatten(1)).view_as(writer.weight))
        if writer.bias is not None:
            writer.bias.copy_(onto_DD @ writer.bias)


NO_BIASES = ("vit_no_biases", "eva_dinov3", "eva02_packed", "eva02_split")
"""Hosts in which something that reads the stream has no bias, so that a constant is lost."""

FLAT = [name for name in TURNING if name not in NO_BIASES]


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("name", FLAT)
@torch.no_grad()
def test_directions_that_nothing_writes_go_without_loss(name: str, repair: str) -> None:
    model = build(name)
    flatten_(model, rank=20)
    x = images_for(model, 8)
    result = prune(
        model, x, "62.5% width", preset="slicegpt", repair=repair, align=FINE, minimum=FINE
    )
    assert result.after.width == 20
    expected = outputs_of(model(x))
    assert float((outputs_of(result.model(x)) - expected).abs().max()) <= 1e-4
    selected = prune(model, x, "62.5% width", preset="magnitude", align=FINE, minimum=FINE)
    apart = float((outputs_of(selected.model(x)) - expected).abs().max())
    assert apart > 1e-2, "any channels would do"


@torch.no_grad()
def test_layers_without_biases_lose_no_more_than_a_constant() -> None:
    model = build("vit_no_biases")
    for block in model.blocks:
        block.norm1.bias.zero_()
        block.norm2.bias.zero_()
    flatten_(model, rank=20)
    x = images_for(model, 8)
    result = prune(model, x, "62.5% width", preset="slicegpt", align=FINE, minimum=FINE)
    assert float((outputs_of(result.model(x)) - outputs_of(model(x))).abs().max()) <= 1e-4


@torch.no_grad()
def test_shifts_that_nobody_can_carry_are_refused() -> None:
    model = build("vit_no_biases")
    model.blocks[0].norm1.weight[3] = 0
    with pytest.raises(UserError, match="'norm1' has a shift where its scale is zero"):
        prune(model, images_for(model), "50% width", preset="slicegpt")


@pytest.mark.parametrize("name", TURNING)
@torch.no_grad()
def test_norms_count_removed_components_as_zeros(name: str) -> None:
    """A sliced model is the rotated one whose stream loses its last components at every place."""
    model = build(name)
    x = images_for(model, 8)
    turned = rotated(host_of(model), as_batches(x, 4))
    result = prune(model, x, "50% width", preset="slicegpt", batch_size=4)
    family = family_of(turned)
    mask_D = torch.arange(32) < 16
    x_BND = family.embed(turned, x) * mask_D
    for branch in read(turned).branches:
        x_BND = family.through(turned, branch)(x_BND) * mask_D
    if name not in NO_BIASES:
        found = outputs_of(result.model(x))
        assert torch.allclose(found, family.head(turned, x_BND), rtol=0, atol=1e-4)
    norms = [module for module in result.model.modules() if isinstance(module, HeldNorm)]
    assert norms and all(norm.missing == 16 and not norm.centre for norm in norms)


@pytest.mark.parametrize("name", TURNING)
def test_costs_are_as_predicted_and_gradients_flow(name: str) -> None:
    model = build(name)
    x = images_for(model, 8)
    result = prune(
        model, x, "50% macs", preset="slicegpt", groups=["width", "hidden"],
        align=FINE, minimum=FINE, exact_tail=False,
    )  # fmt: skip
    assert result.cost == result.before.cost(result.plan.shapes, result.plan.widths)
    found = counted(result.model, result.before.input_size)
    assert (found.macs, found.params) == (result.cost.macs, result.cost.params)
    assert result.cost.macs <= 0.5 * result.cost_dense.macs
    smaller = result.model.train().requires_grad_(True)
    outputs_of(smaller(x)).square().sum().backward()
    idle = unused(build(name))
    for path, parameter in smaller.named_parameters():
        assert (parameter.grad is None) is (path in idle), path


@torch.no_grad()
def test_repairs_come_nearer_to_the_dense_model() -> None:
    errors = {repair: 0.0 for repair in REPAIRS}
    for name in TURNING:
        model = build(name)
        x = images_for(model, 32)
        for repair in REPAIRS:
            result = prune(model, x, "75% width", preset="slicegpt", repair=repair, align=FINE)
            dense = outputs_of(model(x))
            lost = (outputs_of(result.model(x)) - dense).square().sum() / dense.square().sum()
            errors[repair] += float(lost)
    assert errors["least_squares"] < errors["mean"] < errors["none"]


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("name", ["vit", "deit_distilled", "dinov2_swiglu", "class_swiglu"])
@torch.no_grad()
def test_rotated_models_load_again(name: str, repair: str, tmp_path: Path) -> None:
    model = storable(name)
    x = images_for(model)
    result = prune(
        model, images_for(model, 8), "60% width, 50% hidden", preset="slicegpt", repair=repair,
        align=FINE, minimum=FINE,
    )  # fmt: skip
    result.save(tmp_path / "small")
    spec = read_spec(tmp_path / "small")
    assert set(spec.uncentred_norms) == set(spec.held_norms)
    assert len(spec.held_norms) == len(result.before.branches) + 1
    again = load(tmp_path / "small")
    assert torch.allclose(again(x), result.model(x), rtol=0, atol=1e-6)
    assert read(again).cost() == result.cost
    twice = prune(
        again, images_for(model, 8), "70% width", preset="slicegpt", repair=repair,
        align=FINE, minimum=FINE,
    )  # fmt: skip
    missing = {m.missing for m in twice.model.modules() if isinstance(m, HeldNorm)}
    assert missing == {read(model).width - twice.after.width}
    save(twice.model, tmp_path / "less", base=base_of(model), provenance={}, results={})
    assert torch.allclose(load(tmp_path / "less")(x), twice.model(x), rtol=0, atol=1e-6)


def test_specs_that_lie_about_norms_are_refused(tmp_path: Path) -> None:
    model = storable("vit")
    prune(model, images_for(model, 8), "50% width", preset="slicegpt").save(tmp_path / "small")
    path = tmp_path / "small" / "spec.json"
    spec = json.loads(path.read_text())
    for uncentred, words in (
        ([], "does not give the outputs it was saved with"),
        (["blocks.0.attn"], "'blocks.0.attn' is said to be uncentred"),
    ):
        path.write_text(json.dumps(spec | {"uncentred_norms": uncentred, "checksum": None}))
        with pytest.raises(UserError, match=words):
            load(tmp_path / "small")


@torch.no_grad()
def test_readers_are_not_fitted_without_evidence() -> None:
    model = build("vit")
    x = images_for(model, 8)
    turned = rotated(host_of(model), as_batches(x, 4))
    plan = Plan(
        shapes=read(model).shapes,
        widths={"stream": 16},
        units={"stream": {"width": tuple(range(16))}},
        reductions={"width": "rotate"},
    )
    statistics = observe(turned, as_batches(x, 4), ["stream_sums"])
    with pytest.raises(UserError, match=r"readers of blocks.0.attn cannot be fitted"):
        cut_(turned, plan, statistics, "least_squares")


@torch.no_grad()
def test_a_rotation_alone_is_saved(tmp_path: Path) -> None:
    model = storable("vit")
    x = images_for(model)
    turned = copy.deepcopy(model)
    turn_(turned, random_basis(read(model).width))
    save(turned, tmp_path / "turned", base=base_of(model), provenance={}, results={})
    assert set(read_spec(tmp_path / "turned").held_norms.values()) == {0}
    assert torch.allclose(load(tmp_path / "turned")(x), model(x), rtol=0, atol=1e-4)


@torch.no_grad()
def test_rotated_models_export(tmp_path: Path) -> None:
    model = build("deit3")
    x = images_for(model)
    smaller = prune(model, x, "50% width", preset="slicegpt", repair="least_squares").model
    torch.onnx.export(smaller, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), smaller(x), rtol=0, atol=1e-4)
    program = torch.export.export(smaller, (x,)).module()
    assert torch.allclose(program(x), smaller(x), rtol=0, atol=1e-5)


def test_the_polish_compares_rotated_streams() -> None:
    model = build("deit3")
    result = prune(
        model, images_for(model, 24), "75% width", preset="slicegpt", align=FINE, minimum=FINE,
        batch_size=8, polish="12 steps",
    )  # fmt: skip
    assert result.polish is not None and result.polish.kl_after <= result.polish.kl_before


@torch.no_grad()
def test_models_that_cannot_be_rotated_are_told_apart() -> None:
    x = images_for(build("vit"), 8)
    narrow = prune(build("vit"), x, "50% width", preset="magnitude", repair="mean")
    for model, words in (
        (vit(num_classes=0), "no classifier"),
        (vit(final_norm=False), "reads the stream without a norm"),
        (narrow.model, "channels were selected from it already"),
    ):
        with pytest.raises(UserError, match=words):
            prune(model, Untouched(), "50% width", preset="slicegpt", align=FINE, minimum=FINE)
    with pytest.raises(UserError, match="'slicegpt' rotates the stream to make it narrower"):
        prune(build("vit"), Untouched(), "50% hidden", preset="slicegpt")
    host = build("efficientformer")
    with pytest.raises(UserError, match=r"EfficientFormer.*cannot be rotated"):
        family_of(host).require_rotatable(host)


def test_channels_may_be_selected_by_their_energy_without_a_rotation(tmp_path: Path) -> None:
    preset = tmp_path / "by_energy.yaml"
    preset.write_text("title: t\nsource: s\ngroups: [width]\ncriterion: principal\n")
    model = build("vit")
    result = prune(model, images_for(model, 8), "50% width", preset=str(preset))
    assert result.after.width == 16
    assert not any(isinstance(m, HeldNorm) for m in result.model.modules())
    assert anatomy_of("vit").width == 32
