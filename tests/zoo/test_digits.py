import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from secateur.data.digits import load_digits_split
from secateur.errors import UserError
from secateur.zoo import digits_vit, zoo_path


def test_accuracy_through_the_preprocessing_of_the_model() -> None:
    model = digits_vit()
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    images, labels = load_digits_split("test")
    x_BCHW = torch.stack([transform(Image.fromarray(image)) for image in images])
    assert x_BCHW.shape == (450, 1, 8, 8)
    with torch.inference_mode():
        predictions = model(x_BCHW).argmax(dim=1).numpy()
    assert 100 * np.mean(predictions == labels) >= 98


def test_size() -> None:
    assert zoo_path("digits_vit.safetensors").stat().st_size <= 2e6


def test_ready_for_use() -> None:
    model = digits_vit()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_unknown_file_is_refused_with_what_exists() -> None:
    with pytest.raises(UserError, match=r"Known: .*digits_vit\.safetensors"):
        zoo_path("digits_vit.pth")
