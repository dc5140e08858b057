"""Hugging Face classifiers, where transformers is installed; and the advice where it is not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from secateur.data.preprocessing import Preprocessing
from secateur.errors import Advice, UserError
from secateur.measurement.counting import counted
from secateur.models.caches import observable
from secateur.models.family import read
from secateur.models.outputs import outputs_of
from secateur.models.walk_check import require_walk
from secateur.storage.base import build
from secateur.storage.identify import base_of
from secateur.storage.library import libraries
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.surgery.cut import cut_
from tests.contract.cases import plan_for
from tests.hosts import HF as SMALL
from tests.hosts import hf, images_for


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install 'secateur\\[hf\\]'"):
        load("hf:google/vit-base-patch16-224")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    dense: nn.Module = transformers.ViTForImageClassification.from_pretrained(directory)
    dense.pretrained_cfg = {"input_size": (3, 16, 16)}
    assert base_of(dense).name == "vit"


def test_untrained_parts_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have 5 classes"):
        load(f"hf:{directory}", num_classes=3)
    config = transformers.AutoConfig.from_pretrained(directory)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["architectures"] = ["ViTForImageClassification"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"no trained ViTForImageClassification.*classifier"):
        load(f"hf:{tmp_path}")
    assert load(f"hf:{directory}", num_classes=3, pretrained=False).classifier.out_features == 3


@pytest.mark.parametrize("argument", [{"auto_map": "x--evil.Model"}, {"_name_or_path": "evil"}])
def test_files_cannot_name_code(argument: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no setting of a configuration"):
        libraries.get("hf").skeleton("vit", argument)
    with pytest.raises(UserError, match="cannot build"):
        libraries.get("hf").skeleton("no_such_type", {})


ALL: dict[str, dict[str, Any]] = {
    "ViTModel": {},
    "DeiTForImageClassification": {},
    "DeiTForImageClassificationWithTeacher": {},
    "IJepaForImageClassification": {},
    "ViTMSNForImageClassification": {},
    "Dinov2Model": {},
    "Dinov2ForImageClassification": {"use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": {"num_register_tokens": 2},
    "CLIPForImageClassification": {},
    "CLIPVisionModel": {},
    "CLIPVisionModelWithProjection": {},
    "SiglipVisionModel": {},
    "SiglipForImageClassification": {},
    "Aimv2VisionModel": {},
    "DINOv3ViTModel": {"num_register_tokens": 2, "use_gated_mlp": True},
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "BeitModel": {"use_shared_relative_position_bias": True},
}


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_directories_of_every_class(name: str, tmp_path: Path) -> None:
    """What the host saved loads, walks and costs as it does, and survives our own save."""
    dense = hf(name, **ALL[name]).eval()
    dense.save_pretrained(tmp_path / "host", max_shard_size="20KB")
    assert len(list((tmp_path / "host").glob("*.safetensors"))) > 1
    with pytest.warns(Advice, match="how its images are prepared"):
        model = load(f"hf:{tmp_path / 'host'}")
    x = images_for(model)
    assert torch.equal(outputs_of(model(x)), outputs_of(dense(x)))
    require_walk(model)
    anatomy = read(model)
    assert anatomy.cost() == counted(model, anatomy.input_size)
    model = observable(model)
    cut_(model, plan_for(read(model), "everything"), None, "none")
    save(model, tmp_path / "ours", base=base_of(model), provenance={}, results={})
    again = load(tmp_path / "ours")
    assert type(again) is type(dense)
    assert torch.equal(outputs_of(again(x)), outputs_of(model(x)))


@pytest.mark.filterwarnings("ignore::secateur.errors.Advice")
def test_incomplete_and_foreign_directories(tmp_path: Path) -> None:
    hf("ViTModel").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    sorted((tmp_path / "shards").glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="transformers cannot load"):
        load(f"hf:{tmp_path / 'shards'}")
    config = transformers.CLIPConfig(
        vision_config=SMALL, text_config={**SMALL, "vocab_size": 99, "projection_dim": 8}
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "both")
    with pytest.raises(UserError, match=r"'#vision_model' behind it \(CLIPVisionModel, "):
        load(f"hf:{tmp_path / 'both'}")
    with pytest.raises(UserError, match="no part 'text_model'"):
        load(f"hf:{tmp_path / 'both'}#text_model")


@pytest.mark.filterwarnings("ignore::secateur.errors.Advice")
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_image_towers_of_models_with_text(name: str, tmp_path: Path) -> None:
    text = {**SMALL, "vocab_size": 99, "projection_dim": 8}
    config = getattr(transformers, f"{name}Config")(vision_config=SMALL, text_config=text)
    whole = getattr(transformers, f"{name}Model")(config).eval()
    whole.save_pretrained(tmp_path / "both")
    tower = load(f"hf:{tmp_path / 'both'}#vision_model")
    x = images_for(tower)
    with torch.no_grad():
        assert torch.equal(tower(x).last_hidden_state, whole.vision_model(x).last_hidden_state)
    save(tower, tmp_path / "ours", base=base_of(tower), provenance={}, results={})
    assert type(load(tmp_path / "ours")) is type(whole.vision_model)


def test_labels_and_the_size_of_images_are_kept(tmp_path: Path) -> None:
    """DINOv2 takes images smaller than its table of positions, and says so in its processor."""
    dense = hf("Dinov2ForImageClassification", num_labels=3)
    dense.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    dense.save_pretrained(tmp_path / "host")
    transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, rescale_factor=1 / 127.5
    ).save_pretrained(tmp_path / "host")
    model = load(f"hf:{tmp_path / 'host'}")
    assert read(model).tokens == 1 + 4
    save(model, tmp_path / "ours", base=base_of(model), provenance={}, results={})
    again = load(tmp_path / "ours")
    assert again.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    images = Preprocessing.of(again)
    assert images.input_size == (3, 16, 16) and images.crop_pct == 0.8
    assert images.mean == pytest.approx([m / 2 for m in (0.48145466, 0.4578275, 0.40821073)])


def test_wrapped_models_of_timm_are_models_of_timm(tmp_path: Path) -> None:
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        num_labels=3,
        model_args={"img_size": 32, "depth": 2},
    )
    dense = transformers.TimmWrapperForImageClassification(config).eval()
    dense.save_pretrained(tmp_path)
    model = load(f"hf:{tmp_path}")
    x = images_for(model)
    assert torch.equal(model(x), dense(x).logits)
