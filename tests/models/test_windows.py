"""Windows of a grid, and hosts that attend inside them: real sizes, files, padding."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from secateur.data.batches import as_batches
from secateur.export import export
from secateur.measurement.counting import counted_anywhere
from secateur.models.derived.windows import Windows
from secateur.models.family import family_of, read
from secateur.models.runner import Runner
from secateur.models.types import AttentionShape
from secateur.statistics import observe
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.surgery.cut import cut_
from tests.contract.cases import plan_for
from tests.hosts import anatomy_of, build, images_for, randomise_

REAL = ("swin_base_patch4_window7_224", "samvit_base_patch16")
SMALL: dict[str, dict[str, object]] = {
    "swin_tiny_patch4_window7_224": {
        "img_size": 40, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
    },
    "samvit_base_patch16_224": {
        "img_size": 96, "embed_dim": 32, "depth": 3, "num_heads": 2, "window_size": 4,
        "global_attn_indexes": (1,),
    },
}  # fmt: skip
WINDOWED = ("swin", "sam")


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9)])
def test_tokens_come_back_from_their_windows(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    windows = Windows((4, 4), shift, grid)
    x_BRCD = torch.randn(2, *grid, 3)
    split_WTD = windows.split(x_BRCD)
    assert split_WTD.shape == (2 * windows.count, windows.tokens, 3)
    assert torch.equal(windows.join(split_WTD), x_BRCD)
    assert torch.equal(windows.in_order(split_WTD), x_BRCD.flatten(1, 2))
    weights_N = torch.rand(grid[0] * grid[1])
    placed_WT = windows.placed(weights_N)
    assert torch.allclose(placed_WT.sum(), weights_N.sum())
    x_WTD = placed_WT.repeat(2, 1)[..., None]
    assert torch.equal(windows.in_order(x_WTD)[1, :, 0], weights_N)


@pytest.mark.parametrize("name", REAL)
def test_costs_of_real_sizes_are_those_counted(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    anatomy = read(model)
    assert anatomy.cost() == counted_anywhere(model, anatomy.input_size)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_cut_models_load_again_and_export(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, num_classes=10, **SMALL[name]).eval()
    randomise_(model, seed=0)
    base, x = base_of(model), images_for(model)
    cut_(model, plan_for(read(model), "everything"), None, "none")
    save(model, tmp_path / "small", base=base, provenance={}, results={})
    assert torch.equal(load(tmp_path / "small")(x), model(x))
    assert export(model, "onnx", tmp_path / "small.onnx").max_rel < 1e-4


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_moments_are_taken_inside_windows_and_leave_padding_out(name: str) -> None:
    """Means of the context are those of the updates before the writer, token by token."""
    model, anatomy = build(name), anatomy_of(name)
    images = images_for(model)
    needs = ("context_moments", "attention_moments", "update_mean")
    statistics = observe(model, as_batches(images, 2), needs)
    bare = observe(model, as_batches(images, 2), ("context_energies",))
    runner = Runner.of(model)
    padded = False
    for branch in anatomy.branches:
        if not isinstance(branch.shape, AttentionShape):
            continue
        padded |= branch.windows is not None and branch.windows.padded
        sums, tokens = statistics.of("context_moments", branch.id), len(images) * branch.tokens
        assert float(sums["count"]) == tokens
        assert float(statistics.of("attention_moments", branch.id)["count"]) == tokens
        energies = bare.of("context_energies", branch.id)
        assert torch.allclose(energies["sum"], sums["sum"], rtol=1e-4, atol=1e-2)
        weights = runner.family.weights(model, branch)
        mean = sums["sum"].float() / tokens
        expected = statistics.of("update_mean", branch.id)["update_sum"].float() / tokens
        found = weights.o_DHV.flatten(1) @ mean + weights.ob_D
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert padded


@pytest.mark.parametrize("name", WINDOWED)
def test_hosts_keep_their_class_with_fewer_heads(name: str) -> None:
    model, dense = build(name), build(name)
    cut_(model, plan_for(anatomy_of(name), "heads"), None, "none")
    for branch in read(model).branches:
        assert type(model.get_submodule(branch.id)) is type(dense.get_submodule(branch.id))
    assert isinstance(family_of(model), type(family_of(dense))) and isinstance(model, nn.Module)
