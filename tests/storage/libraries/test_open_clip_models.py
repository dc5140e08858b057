"""Image towers of open_clip: names, sizes, preprocessing and rebuilds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import UserError
from secateur.models.family import read
from secateur.storage.identify import base_of
from secateur.storage.library import libraries
from secateur.storage.load import load
from tests.hosts import settled

pytest.importorskip("open_clip")


def test_checkpoint_of_a_named_tower(tmp_path: Path) -> None:
    with torch.device("meta"):
        named = libraries.get("open_clip").open(
            "ViT-B-32-quickgelu", pretrained=False, num_classes=None, img_size=64
        )
    assert read(named).input_size == (3, 64, 64)
    assert named.transformer.resblocks[0].mlp.gelu.__class__.__name__ == "QuickGELU"
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 4}
    arguments = {**sizes, "mlp_ratio": 2.0, "output_dim": 10, "act_layer": "QuickGELU"}
    tower = settled(libraries.get("open_clip").skeleton("VisionTransformer", arguments), "tower")
    base = base_of(tower)
    assert (
        base.arguments.items()
        >= {**arguments, "image_size": [32, 32], "patch_size": [8, 8]}.items()
    )
    assert base.preprocessing.crop_pct == 1.0
    assert base.preprocessing.mean[0] == pytest.approx(0.48145466)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        load("open_clip:ViT-B-32", checkpoint=tmp_path / "other.safetensors", img_size=32)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-33", "did you mean ViT-B-32"),
        ("ViT-B-32", "open_clip:ViT-B-32@openai"),
        ("ViT-B-16-SigLIP", "take timm:vit_base_patch16_siglip_224"),
        ("coca_ViT-B-32", "no plain vision transformer"),
        ("RN50", "no plain vision transformer"),
    ],
)
def test_refusals(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(f"open_clip:{name}")


def test_only_sizes_may_come_from_a_file() -> None:
    library = libraries.get("open_clip")
    with pytest.raises(UserError, match="'patch_dropout' is no argument"):
        library.skeleton("VisionTransformer", {"patch_dropout": 0.5})
    with pytest.raises(UserError, match="activation"):
        library.skeleton("VisionTransformer", {"act_layer": "os.system"})
    with pytest.raises(UserError, match="class"):
        library.skeleton("TextTransformer", {})
