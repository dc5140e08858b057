import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from tests.data.made_up import SMALL

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def test_of_a_timm_model_is_its_configuration() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TINY)
    assert Preprocessing.of(model) == Preprocessing(
        input_size=(3, 224, 224),
        interpolation="bicubic",
        crop_pct=0.9,
        crop_mode="center",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_size_and_channels_are_the_models_own() -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=(32, 64), in_chans=1, **TINY)
    found = Preprocessing.of(model)
    assert found.input_size == (1, 32, 64)
    assert found.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


def test_a_model_without_configuration_gets_imagenet_defaults() -> None:
    model = VisionTransformer(img_size=32, patch_size=16, num_classes=3, **TINY)
    found = Preprocessing.of(model)
    assert (found.input_size, found.crop_pct) == ((3, 32, 32), 0.875)
    assert found.mean == (0.485, 0.456, 0.406)


def test_a_model_of_unknown_size_is_refused() -> None:
    with pytest.raises(UserError, match="cannot tell the image size of Linear"):
        Preprocessing.of(torch.nn.Linear(2, 2))


def test_override_replaces_only_what_is_given() -> None:
    changed = SMALL.override(mean=0.25, std=(0.1, 0.2, 0.3), image_size=8)
    assert changed.mean == (0.25, 0.25, 0.25)
    assert changed.std == (0.1, 0.2, 0.3)
    assert changed.input_size == (3, 8, 8)
    assert (changed.interpolation, changed.crop_pct) == ("bilinear", 1.0)
    assert SMALL.override() == SMALL
    assert SMALL.override(mean=(0.1,)).mean == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"std": 0.0}, "std must be positive"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for 3 channels"),
        ({"mean": float("nan")}, "mean is not finite"),
        ({"crop_pct": 1.5}, "share between 0 and 1"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"image_size": 0}, "not positive"),
    ],
)
def test_bad_values_are_named(change: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SMALL.override(**change)


def test_json_round_trip() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(SMALL.to_json()))) == SMALL


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"mean": "evil"}, "'mean'"), ({"input_size": [3, 8]}, "'input_size"), ({"run": 1}, "'run'")],
)
def test_tampered_json_is_refused_by_name(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Preprocessing.from_json({**SMALL.to_json(), **change})


def test_json_without_a_key_is_refused() -> None:
    value = SMALL.to_json()
    del value["std"]
    with pytest.raises(UserError, match="'std'"):
        Preprocessing.from_json(value)


def test_transform_normalises_each_channel() -> None:
    image = Image.fromarray(np.full((20, 30, 3), (0, 51, 255), np.uint8))
    x_CHW = SMALL.override(mean=(0.0, 0.1, 0.5), std=(1.0, 0.1, 0.25)).transform()(image)
    assert x_CHW.dtype == torch.float32
    assert x_CHW.shape == (3, 16, 16)
    torch.testing.assert_close(x_CHW[:, 5, 5], torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_grey_images_keep_their_pixels(crop_mode: str) -> None:
    grey = Preprocessing(
        input_size=(1, 8, 8),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode=crop_mode,
        mean=(0.0,),
        std=(1.0,),
    )
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    x_CHW = grey.transform()(Image.fromarray(pixels))
    assert grey.image_mode == "L"
    torch.testing.assert_close(x_CHW, torch.from_numpy(pixels)[None] / 255)
