"""Every stage of an EfficientFormer is a stream of its own: priced, cut, held and saved."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.models.family import family_of, read
from secateur.models.types import Cost, StreamTransition
from secateur.statistics import Statistics, observe
from secateur.storage.load import load
from secateur.storage.spec import read_spec
from secateur.surgery.cut import cut_
from secateur.verbs.prune import prune
from tests.hosts import anatomy_of, build, efficientformer, images_for
from tests.storage.test_efficientformer import images, small

NAME = "efficientformer_grids"
FINE = {"width": 1, "qk": 2, "vo": 2, "hidden": 4, "heads": 1}


def without(model: nn.Module, stage: str, channels: list[int]) -> Plan:
    """The plan that removes these channels of a stage only."""
    anatomy = read(model)
    kept = tuple(sorted(set(range(anatomy.widths[stage])) - set(channels)))
    return Plan(shapes=anatomy.shapes, widths={stage: len(kept)}, units={stage: {"width": kept}})


def seen(model: nn.Module) -> Statistics:
    x = images_for(model, 8, seed=1).to(next(model.parameters()).dtype)
    return observe(model, as_batches(x, 4), ("stream_sums",))


@torch.no_grad()
def still_(model: nn.Module, stage: int, channels: list[int], value: float) -> None:
    """Let these channels of a stage carry one value from its first writer to its last reader."""
    index = torch.tensor(channels)
    if stage:
        norm = model.get_submodule(f"stages.{stage}.downsample.norm")
        norm.weight[index], norm.bias[index] = 0.0, value
    else:
        assert value >= 0, "the stem ends in a ReLU"
        model.stem.norm2.weight[index], model.stem.norm2.bias[index] = 0.0, value
    for block in model.stages[stage].blocks:
        for name in ("ls1", "ls2"):
            if hasattr(block, name):
                block.get_submodule(name).gamma[index] = 0.0


def test_strided_convolutions_are_priced_by_both_sides() -> None:
    assert anatomy_of(NAME).transitions == (
        StreamTransition(
            first="stages.0", second="stages.1", per_pair=Cost(params=9, macs=9 * 14 * 14)
        ),
        StreamTransition(
            first="stages.1", second="stages.2", per_pair=Cost(params=9, macs=9 * 7 * 7)
        ),
    )


@pytest.mark.parametrize("widths", [{"stages.0": 5}, {"stages.1": 9, "stages.2": 13}])
@torch.no_grad()
def test_what_is_counted_is_what_was_predicted(widths: dict[str, int]) -> None:
    model, anatomy = build(NAME), anatomy_of(NAME)
    units = {stage: {"width": tuple(range(width))} for stage, width in widths.items()}
    cut_(model, Plan(shapes=anatomy.shapes, widths=widths, units=units), None, "none")
    assert counted(model, anatomy.input_size) == anatomy.cost(None, widths) == read(model).cost()


@pytest.mark.parametrize("value", [0.0, 0.7])
@torch.no_grad()
def test_still_channels_of_the_last_stage_go_without_loss(value: float) -> None:
    model = build(NAME).double()
    still_(model, 2, [1, 5, 6, 20], value)
    x = images_for(model).double()
    expected = model(x)
    held, plain = copy.deepcopy(model), copy.deepcopy(model)
    cut_(held, without(model, "stages.2", [1, 5, 6, 20]), seen(model), "mean")
    cut_(plain, without(model, "stages.2", [1, 5, 6, 20]), None, "none")
    assert float((held(x) - expected).abs().max()) <= 1e-10
    assert float((plain(x) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("stage", [0, 1])
@torch.no_grad()
def test_dead_channels_of_grids_go_without_loss(stage: int) -> None:
    model = build(NAME).double()
    still_(model, stage, [0, 3, 4], 0.0)
    x = images_for(model).double()
    expected = model(x)
    cut_(model, without(model, f"stages.{stage}", [0, 3, 4]), None, "none")
    assert float((model(x) - expected).abs().max()) <= 1e-10


@pytest.mark.parametrize("stage", [0, 1])
@torch.no_grad()
def test_still_channels_of_grids_are_exact_but_at_the_rim(stage: int) -> None:
    """A strided convolution sees zeros beyond the edge, never the constant."""
    model = build(NAME).double()
    still_(model, stage, [0, 3, 4], 0.8)
    x = images_for(model).double()
    smaller = copy.deepcopy(model)
    cut_(smaller, without(model, f"stages.{stage}", [0, 3, 4]), seen(model), "mean")
    found: dict[str, Tensor] = {}
    for name, one in (("dense", model), ("smaller", smaller)):
        following = one.get_submodule(f"stages.{stage + 1}.downsample")

        def keep(_m: nn.Module, _a: object, out: Tensor, name: str = name) -> None:
            found[name] = out

        handle = following.register_forward_hook(keep)
        one(x)
        handle.remove()
    difference = (found["dense"] - found["smaller"]).abs()
    assert float(difference[..., 1:, 1:].max()) <= 1e-10
    assert float(difference.max()) > 1e-3, "the rim was no different"


def test_members_have_one_row_per_channel() -> None:
    model, anatomy = build(NAME), anatomy_of(NAME)
    family = family_of(model)
    for stream in anatomy.streams:
        found = family.stream_weights(model, stream)
        for matrix in [*found.writers.values(), *found.readers.values()]:
            assert matrix.ndim == 2 and matrix.shape[0] == stream.width
        own = {b.id for b in anatomy.branches if b.stage == stream.stage}
        assert own < set(found.writers) and own < set(found.readers)
    assert {"head", "head_dist"} < set(found.readers)
    assert "stages.2.downsample" in found.writers


@pytest.mark.parametrize("repair", ["none", "mean"])
@torch.no_grad()
def test_narrow_stages_load_again(repair: str, tmp_path: Path) -> None:
    model, x = small(), images()
    result = prune(
        model, x, "60% width, 50% hidden", preset="magnitude", repair=repair, align=FINE,
        minimum=FINE,
    )  # fmt: skip
    result.save(tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(again(x), result.model(x))
    assert set(read_spec(tmp_path / "small").widths) == {f"stages.{i}" for i in range(4)}
    assert counted(again, (3, 224, 224)) == result.cost


@pytest.mark.parametrize("allocation", ["uniform", "ranking", "knapsack"])
@torch.no_grad()
def test_widths_compete_with_neurons_in_one_budget(allocation: str) -> None:
    model = build(NAME)
    result = prune(
        model, images_for(model, 8), "60% macs", preset="magnitude", allocation=allocation,
        groups=["width", "hidden"], align=FINE, minimum=FINE,
    )  # fmt: skip
    share = result.cost.macs / result.before.cost().macs
    assert 0.5 < share <= 0.6
    assert result.cost == result.before.cost(result.plan.shapes, result.plan.widths)
    assert bool(torch.isfinite(result.model(images_for(model))).all())


def test_a_polish_of_narrower_stages_is_refused() -> None:
    model = build(NAME)
    with pytest.raises(UserError, match="several stages become narrower"):
        prune(
            model, images_for(model, 16), "80% width", preset="magnitude", polish="1 steps",
            align=FINE, minimum=FINE,
        )  # fmt: skip


@pytest.mark.parametrize("preset", ["snp+head", "snp+block", "snp"])
@torch.no_grad()
def test_presets_of_snp_work_on_stages(preset: str) -> None:
    model = build(NAME)
    result = prune(model, images_for(model, 8), "75% macs", preset=preset, align=FINE, minimum=FINE)
    assert result.cost.macs <= 0.75 * result.before.cost().macs
    assert bool(torch.isfinite(result.model(images_for(model))).all())


def test_stages_that_share_a_stream_are_refused() -> None:
    model = efficientformer(embed_dims=(16, 16), downsamples=(True, False))
    assert not read(model).streams
    with pytest.raises(UserError, match="not every stage but the first begins with"):
        prune(model, torch.zeros(2, 3, 56, 56), "50% width", preset="magnitude")
