"""Models and images as users name them."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import secateur
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.storage.identify import base_of
from secateur.verbs.load import load_shape, open_data, refuse_missing
from tests.data.made_up import make_folder


def tiny() -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes).eval()


def test_preprocessing_can_be_replaced_and_stays_with_the_model(tmp_path: Path) -> None:
    model = secateur.load("digits_vit", mean=0.25, std=(0.75,), interpolation="bilinear")
    images = Preprocessing.of(model)
    assert (images.mean, images.std, images.interpolation) == ((0.25,), (0.75,), "bilinear")
    assert base_of(model).preprocessing == images
    assert Preprocessing.of(secateur.load("digits_vit")).mean == (0.5,)

    result = secateur.prune(model, "digits/train", "50% hidden", limit=16, preset="energy")
    result.save(tmp_path / "small")
    assert Preprocessing.of(secateur.load(tmp_path / "small")) == images
    changed = secateur.load(tmp_path / "small", mean=0.5)
    assert Preprocessing.of(changed).mean == (0.5,)


def test_a_module_of_the_users_own_is_pruned_saved_and_loaded(tmp_path: Path) -> None:
    model = secateur.load(tiny())
    x = torch.randn(4, 3, 16, 16)
    result = secateur.prune(model, x, "60% macs", preset="energy")
    result.save(tmp_path / "small")
    torch.testing.assert_close(secateur.load(tmp_path / "small")(x), result.model(x))


def test_a_module_that_cannot_be_rebuilt_is_pruned_but_not_saved(tmp_path: Path) -> None:
    model = tiny()
    model.norm = nn.LayerNorm(32, eps=0.5)
    result = secateur.prune(model, torch.randn(4, 3, 16, 16), "60% macs", preset="energy")
    assert result.cost.macs < result.cost_dense.macs
    with pytest.raises(UserError, match="cannot tell how this VisionTransformer was built"):
        result.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_images_from_a_folder_and_from_memory(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 3, "b": 3, "c": 3})
    batches, used = open_data(tiny(), folder, limit=6, batch_size=4)
    assert (batches.images, used.images, used.source) == (6, 6, str(folder))
    assert [len(batch.images_BCHW) for batch in batches] == [4, 2]
    assert used.fingerprint is not None
    batches, used = open_data(tiny(), torch.randn(5, 3, 16, 16))
    assert (batches.images, used.images, used.source) == (5, 5, "Tensor")
    with pytest.raises(UserError, match="3 classes"):
        open_data(secateur.load("digits_vit"), folder)


def test_missing_places_are_refused_and_others_not(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").touch()
    for there in ("digits", "hfds/some/name", tmp_path, f"{tmp_path}/*.parquet", f"wds/{tmp_path}"):
        refuse_missing(there)
    for missing in (tmp_path / "digits", f"{tmp_path}/no/*.parquet", "wds/none"):
        with pytest.raises(UserError, match="no such file or folder"):
            refuse_missing(missing)


def test_only_sizes_without_weights() -> None:
    model = load_shape("timm:vit_tiny_patch16_224", num_classes=7, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert secateur.inspect(model).num_classes == 7
    real = load_shape("digits_vit")
    expected = secateur.load("digits_vit").state_dict()
    assert all(torch.equal(real.state_dict()[name], expected[name]) for name in expected)
