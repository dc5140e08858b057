"""torchvision's models: names, sizes, preprocessing and rebuilds."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from secateur.errors import UserError
from secateur.storage.base import build
from secateur.storage.identify import base_of
from secateur.storage.library import libraries
from secateur.storage.load import load

NAME = "squeezenet1_1"
"""A small one; transformers differ only in taking an image size."""


def test_checkpoint_and_rebuild(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = torchvision.models.get_model(NAME, num_classes=6).eval()
    path = tmp_path / "weights.safetensors"
    save_file(dense.state_dict(), path)
    model = load(f"torchvision:{NAME}", checkpoint=path, num_classes=6)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), dense(x))
    base = base_of(model)
    assert (base.library, base.name, base.arguments) == ("torchvision", NAME, {"num_classes": 6})
    assert base.preprocessing.input_size == (3, 224, 224)
    assert base.preprocessing.mean == (0.485, 0.456, 0.406)
    assert base.preprocessing.crop_pct == pytest.approx(224 / 256)
    again = build(base, "cpu")
    again.load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(again(x), dense(x))


def test_image_size_of_a_transformer() -> None:
    with torch.device("meta"):
        model = libraries.get("torchvision").open(
            "vit_b_32", pretrained=False, num_classes=None, img_size=64
        )
    assert model.image_size == 64
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.heads.head.out_features == 1000


def test_pretrained_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    build = torchvision.models.get_model

    def download(name: str, weights: str | None = None, **arguments: object) -> torch.nn.Module:
        if weights == "DEFAULT" and name != NAME:
            raise URLError("no network")
        return build(name, weights=None, **arguments)

    monkeypatch.setattr(torchvision.models, "get_model", download)
    assert load(f"torchvision:{NAME}").secateur_base.arguments == {"num_classes": 1000}
    with pytest.raises(UserError, match=r"no network.*--checkpoint"):
        load("torchvision:resnet18")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load("torchvision:squeezenet1_2"), "did you mean 'squeezenet1_"),
        (lambda: load("torchvision:qqqq"), "list_models"),
        (lambda: load(f"torchvision:{NAME}", num_classes=3), "have 1000 classes"),
        (lambda: load(f"torchvision:{NAME}", pretrained=False, img_size=64), "cannot build"),
    ],
)
def test_refusals(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=words):
        call()


def test_only_sizes_may_come_from_a_file() -> None:
    library = libraries.get("torchvision")
    with pytest.raises(UserError, match="'weights' is no argument"):
        library.skeleton(NAME, {"weights": "DEFAULT"})
    with pytest.raises(UserError, match="unknown torchvision model"):
        library.skeleton("../evil", {})
