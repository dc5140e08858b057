"""Tiny models of both families with a few images, as every verb takes them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.data.preprocessing import Preprocessing
from secateur.models.family import read
from secateur.verbs.load import give_preprocessing_
from tests import hosts
from tests.hosts import build, efficientformer, images_for, randomise_, settle_

IMAGES = 8

FAMILIES = ("vit", "efficientformer_least")


def model_of(name: str) -> nn.Module:
    """A fresh host on the CPU that knows its preprocessing."""
    model = _least() if name == "efficientformer_least" else build(name)
    own = replace(Preprocessing.of(hosts.shared("vit")), input_size=read(model).input_size)
    give_preprocessing_(model, own)
    return model


def _least() -> nn.Module:
    """The smallest EfficientFormer; not among the hosts of other tests."""
    model = efficientformer(2, depths=(2, 2), embed_dims=(8, 16))
    randomise_(model, seed=1)
    settle_(model)
    return model.eval()


def images_of(model: nn.Module, count: int = IMAGES) -> Tensor:
    """Random images on the CPU, of the size that the model takes."""
    return images_for(model, count)


def labels_of(images_nCHW: Tensor) -> Tensor:
    """Some labels, every class in turn."""
    return torch.arange(len(images_nCHW)) % 10


def on(model: nn.Module, device: torch.device) -> bool:
    """Whether all that a model holds is on the device."""
    return all(x.device == device for x in model.state_dict().values())


@torch.no_grad()
def assert_same(moved: nn.Module, plain: nn.Module, device: torch.device) -> None:
    """A model is on the device and says there what another says on the CPU."""
    assert on(moved, device) and on(plain, torch.device("cpu"))
    x_BCHW = images_of(plain, 4)
    expected = plain(x_BCHW)
    share = 1e-4 if device.type == "standin" else 2e-2
    largest = share * float(expected.abs().max())
    assert torch.allclose(moved(x_BCHW.to(device)).cpu(), expected, rtol=0, atol=largest)
