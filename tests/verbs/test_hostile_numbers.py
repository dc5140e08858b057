"""Pixels that are no numbers and weights of zero: a sentence, or finite results."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.errors import UserError
from secateur.masks.settings import LearnSettings
from secateur.training.heal_and_train import HealSettings
from tests.hosts import images_for, vit

PRESETS = ("spectral", "energy", "magnitude", "random", "layer_drop", "sleb", "snp", "snp+head")
BAD = (math.nan, math.inf, -math.inf)


def spoilt(value: float) -> Tensor:
    images = images_for(vit(), 40)
    images[37, 1, 2, 3] = value
    return images


class OneByOne(torch.utils.data.Dataset[Tensor]):
    """Images that are only seen when they are asked for."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        return self.images[number]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("preset", PRESETS)
def test_pixels_that_are_no_numbers(preset: str, value: float) -> None:
    with pytest.raises(UserError, match=r"image number 37, .* NaN or infinite pixels"):
        secateur.prune(vit().eval(), spoilt(value), "85% macs", preset=preset, effort="quick")


@pytest.mark.parametrize("value", BAD)
def test_pixels_given_in_other_ways(value: float) -> None:
    model, x = vit().eval(), spoilt(value)
    labels = torch.zeros(40, dtype=torch.int64)
    for whole in ((x, labels), list(x), list(x.split(8))):
        with pytest.raises(UserError, match="image number 37, "):
            secateur.prune(model, whole, "85% macs", preset="energy")
    for later in (DataLoader(TensorDataset(x), 16), OneByOne(x)):
        with pytest.raises(UserError, match="image number 5 of a batch, "):
            secateur.prune(model, later, "85% macs", preset="energy")
    for verb in (secateur.analyze, secateur.evaluate):
        with pytest.raises(UserError, match="NaN or infinite pixels"):
            verb(model, (x, labels))
    with pytest.raises(UserError, match="NaN or infinite pixels"):
        secateur.learn(model, x, "85% macs", settings=LearnSettings(steps=1))
    with pytest.raises(UserError, match="NaN or infinite pixels"):
        secateur.heal(model, x, reference=vit().eval(), settings=HealSettings(steps=1))
    quick = HealSettings(steps=1, batch_size=40, held_out=0.0)
    for given in (TensorDataset(x, labels), DataLoader(TensorDataset(x), 16), OneByOne(x)):
        for workers in (0, 1):
            settings = quick.model_copy(update={"workers": workers})
            with pytest.raises(UserError, match=r"^image number 37, .* NaN or infinite pixels"):
                secateur.heal(model, given, reference=vit().eval(), settings=settings)


ZEROS = {
    "all": lambda name: True,
    "blocks": lambda name: name.startswith("blocks"),
    "embedding": lambda name: not name.startswith("blocks"),
    "writers": lambda name: "proj." in name or "fc2." in name,
    "readers": lambda name: "qkv." in name or "fc1." in name,
}


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("preset", ["prune_comp", "shortgpt", "laco", "replaceme", "nbl", *PRESETS])
@torch.no_grad()
def test_weights_of_zero(preset: str, zero: str) -> None:
    model: nn.Module = vit().eval()
    for name, parameter in model.named_parameters():
        if ZEROS[zero](name):
            parameter.zero_()
    x = images_for(model, 64)
    result = secateur.prune(model, x, "85% macs", preset=preset, effort="quick")
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    assert bool(result.model(x).isfinite().all())
    assert math.isfinite(result.plan.predicted_loss)
    assert result.cost.macs <= 0.85 * result.cost_dense.macs
