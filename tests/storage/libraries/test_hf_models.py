"""Hugging Face classifiers, where transformers is installed; and the advice where it is not."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import UserError
from secateur.storage.base import build
from secateur.storage.identify import base_of
from secateur.storage.library import libraries
from secateur.storage.load import load


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        load("hf:google/vit-base-patch16-224")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=16, patch_size=8, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    return folder


def test_directory_and_rebuild(directory: Path) -> None:
    import transformers

    dense = transformers.ViTForImageClassification.from_pretrained(directory).eval()
    model = load(f"hf:{directory}")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x).logits, dense(x).logits)
    base = base_of(model)
    assert (base.library, base.name) == ("hf", "vit")
    assert base.arguments["num_labels"] == 5
    assert base.preprocessing.input_size == (3, 16, 16)
    assert base.preprocessing.std == (0.25, 0.25, 0.25)
    assert base.preprocessing.crop_mode == "squash"
    again = build(base, "cpu")
    again.load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(again(x).logits, dense(x).logits)


def test_a_module_of_the_user_is_recognised(directory: Path) -> None:
    import transformers

    dense: nn.Module = transformers.ViTForImageClassification.from_pretrained(directory)
    dense.pretrained_cfg = {"input_size": (3, 16, 16)}
    assert base_of(dense).name == "vit"


def test_untrained_parts_are_refused(directory: Path, tmp_path: Path) -> None:
    import transformers

    with pytest.raises(UserError, match="have 5 classes"):
        load(f"hf:{directory}", num_classes=3)
    config = transformers.AutoConfig.from_pretrained(directory)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no trained image classifier.*classifier"):
        load(f"hf:{tmp_path}")
    assert load(f"hf:{directory}", num_classes=3, pretrained=False).classifier.out_features == 3


@pytest.mark.parametrize("argument", [{"auto_map": "x--evil.Model"}, {"_name_or_path": "evil"}])
def test_files_cannot_name_code(argument: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="no setting of a configuration"):
        libraries.get("hf").skeleton("vit", argument)
    with pytest.raises(UserError, match="cannot build"):
        libraries.get("hf").skeleton("no_such_type", {})
