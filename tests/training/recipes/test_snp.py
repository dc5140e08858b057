"""The fine-tuning recipe of SNP: its values as published, and a dry run on real images."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from secateur.errors import UserError
from secateur.storage.load import load
from secateur.training.recipes import recipe, recipe_names

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods" / "snp_finetuning.md"


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(recipe("snp").read_text(encoding="utf-8"))
    return found


def test_the_values_are_those_of_the_papers_scripts() -> None:
    known = values()
    assert (known["epochs"], known["batch_size"], known["ema"]) == (300, 2048, 0.99996)
    # Their 0.00025 is for 512 images: scaled by 2048 / 512.
    assert known["optimizer"]["learning_rate"] == pytest.approx(0.00025 * 2048 / 512)
    least = known["schedule"]["least"] * known["optimizer"]["learning_rate"]
    assert least == pytest.approx(1e-5)


def test_the_page_shows_it() -> None:
    text = recipe("snp").read_text(encoding="utf-8")
    assert text in PAGE.read_text(encoding="utf-8")


def test_unknown_recipes_are_refused_by_name() -> None:
    assert "snp" in recipe_names()
    with pytest.raises(UserError, match="unknown recipe 'snpp'; did you mean 'snp'"):
        recipe("snpp")


def test_a_dry_run_of_a_few_steps_on_real_images(shared_dir: Path) -> None:
    verbs = pytest.importorskip("secateur.training.heal_and_train")
    settings = pytest.importorskip("secateur.training.settings")
    from secateur import heal, prune

    model = load(
        "timm:vit_tiny_patch16_224",
        checkpoint=shared_dir / "models" / "vit_tiny_patch16_224.safetensors",
    )
    images = str(shared_dir / "data" / "imagenet_calibration")
    smaller = prune(model, images, "50% qk, 50% vo, 50% hidden", preset="snp", limit=4)
    before = {name: p.clone() for name, p in smaller.model.named_parameters()}
    few = {"steps": 3, "batch_size": 4, "precision": "no"}
    chosen = settings.read_settings(verbs.HealSettings, recipe("snp"), few)
    assert chosen.optimizer.learning_rate == 1e-3 and chosen.distil.label_weight == 1.0
    healed = heal(smaller, images, reference=model, settings=chosen, limit=12)
    assert healed.report.steps == 3
    moved = [
        name
        for name, p in healed.model.named_parameters()
        if not torch.equal(p.detach(), before[name].detach())
    ]
    assert set(moved) == set(before)
