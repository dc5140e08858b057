"""Models of several libraries in the verbs, as modules or from a directory, to an exported file."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import Advice
from secateur.export import export
from secateur.masks.settings import LearnSettings
from secateur.models.outputs import outputs_of
from secateur.training.heal_and_train import HealSettings
from tests.hosts import HOSTS, as_made, hf, images_for, settled

FINE = {"width": 1, "qk": 2, "vo": 2, "hidden": 4, "heads": 1}
QUIET = {"steps": 4, "batch_size": 8, "trackers": ()}


def opened(name: str, folder: Path) -> nn.Module:
    """A module, or one of transformers as it is loaded from the directory that it wrote."""
    if not name.startswith("hf_"):
        return copy.deepcopy(as_made(name))
    as_made(name).save_pretrained(folder)
    with pytest.warns(Advice, match="how its images are prepared"):
        return secateur.load(f"hf:{folder}")


@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov2_registers", "hf_beit", "torchvision_vit"])
def test_classifiers_in_all_verbs(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path / "host")
    before = copy.deepcopy(model.state_dict())
    x = images_for(model, 24)
    data = (x, torch.arange(24) % 10)
    result = secateur.prune(model, x, "70% macs", align=FINE, minimum=FINE)
    accuracy = secateur.evaluate(result.model, data, reference=model)
    assert accuracy.kl is not None and accuracy.kl > 0
    healed = secateur.heal(
        result, data, reference=model, settings=HealSettings.model_validate(QUIET)
    )
    healed.save(tmp_path / "healed")
    again = secateur.load(tmp_path / "healed")
    with torch.no_grad():
        expected = outputs_of(healed.model(x))
        assert torch.equal(outputs_of(again(x)), expected)
    parity = export(again, "onnx", tmp_path / "model.onnx")
    assert parity.any_batch and parity.max_rel < 1e-4
    assert secateur.analyze(model, x, limit=8).findings
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["hf_clip", "beitv2_shared"])
def test_learned_masks_on_a_classifier(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path / "host")
    x = images_for(model, 24)
    settings = LearnSettings.model_validate(
        {"epochs": 2, "batch_size": 8, "workers": 0, "trackers": ()}
    )
    data = (x, torch.arange(24) % 10)
    found = secateur.learn(model, data, "70% macs", settings=settings, reference=model, align=FINE)
    found.save(tmp_path / "small")
    again = secateur.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(outputs_of(again(x)), outputs_of(found.model(x)))


FEATURES = [name for name in ("hf_siglip_features", "open_clip_vit") if name in HOSTS]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("preset", ["spectral", "greedy_drop"])
def test_features_decide_where_there_are_no_classes(name: str, preset: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path / "host")
    x = images_for(model, 16)
    budget = "drop 2 attention" if preset == "greedy_drop" else "75% macs"
    result = secateur.prune(model, x, budget, preset=preset)
    result.save(tmp_path / "small")
    again = secateur.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(outputs_of(again(x)), outputs_of(result.model(x)))
    assert type(again) is type(model)


@pytest.mark.parametrize("to", {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}.items())
def test_files_hold_all_features(to: tuple[str, str], tmp_path: Path) -> None:
    model = settled(hf("ViTModel", num_hidden_layers=1), "features")
    assert export(model, to[0], tmp_path / f"model{to[1]}").max_rel < 1e-4
    assert outputs_of(model(images_for(model, 1))).shape[1] == 18


@pytest.mark.parametrize(
    ("cls", "shows"),
    [
        ("ViTModel", True),
        ("CLIPVisionModelWithProjection", True),
        ("ViTForImageClassification", False),
    ],
)
def test_features_of_the_stream_keep_its_width(cls: str, shows: bool) -> None:
    found = secateur.inspect(hf(cls, num_hidden_layers=1))
    assert ("outputs have the channels" in found.refusals.get("width", "")) is shows
