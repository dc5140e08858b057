"""Every preset prunes on another device, both families, and comes to what the CPU comes to."""

from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import UserError
from secateur.presets import load_preset, preset_names
from secateur.verbs.result import Result
from tests.device.hosts import FAMILIES, assert_same, images_of, model_of

FINE = {"qk": 1, "vo": 1, "hidden": 2, "heads": 1, "width": 4}
UNFIT = {
    ("nbl", "efficientformer_least"): "replacement 'linear' is not offered",
    ("slicegpt", "efficientformer_least"): "one stream through the whole model",
    ("spectral+tome", "efficientformer_least"): "its head reads every token",
    ("tome", "efficientformer_least"): "its head reads every token",
}
"""Presets that refuse a family on any device."""
UNIFORM_ONLY = ("replaceme", "uidl")
"""Presets that compare streams across blocks, which must have one width."""
CASES = [
    (preset, family)
    for preset in preset_names()
    for family in FAMILIES
    if preset not in UNIFORM_ONLY or family == "vit"
] + [(preset, family) for preset in ("spectral", "taylor") for family in ("swin", "sam")]


def pruned(preset: str, family: str, device: torch.device | str, **options: object) -> Result:
    model = model_of(family)
    images = images_of(model)
    groups = load_preset(preset).groups
    budget = {("width",): "60% width", ("block",): "drop 1 blocks"}.get(groups, "85% macs")
    given = {"align": FINE, "minimum": FINE, "batch_size": 4, "effort": "quick"} | options
    return secateur.prune(model.to(device), images, budget, preset=preset, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("preset", "family"), CASES)
def test_presets(preset: str, family: str, device: torch.device) -> None:
    if sentence := UNFIT.get((preset, family)):
        with pytest.raises(UserError, match=sentence):
            pruned(preset, family, device)
        return
    plain, moved = pruned(preset, family, "cpu"), pruned(preset, family, device)
    if device.type == "standin":
        assert moved.plan.shapes == plain.plan.shapes and moved.plan.widths == plain.plan.widths
        assert_same(moved.model, plain.model, device)
    assert moved.cost.macs < moved.cost_dense.macs


def test_measured_menus(device: torch.device, tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    lines = "groups: [hidden, branch, block]\ncriterion: energy\nmenus: measured\nrepair: mean\n"
    rest = "criteria: {branch: cosine, block: cosine}\nallocation: knapsack\n"
    preset.write_text(f"title: Mine\nsource: me\n{lines}{rest}", encoding="utf-8")
    plain, moved = pruned(str(preset), "vit", "cpu"), pruned(str(preset), "vit", device)
    if device.type == "standin":
        assert moved.plan.shapes == plain.plan.shapes
        assert_same(moved.model, plain.model, device)
