"""What a model can be rebuilt from is found by its state, also once it was changed."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import secateur
from secateur.errors import Advice, UserError
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from tests.hosts import SIZES, images_for

Change = Callable[[nn.Module], nn.Module]


def loaded() -> nn.Module:
    return secateur.load("timm:test_vit", pretrained=False)


def created() -> nn.Module:
    return timm.create_model("test_vit").eval()


def zoo() -> nn.Module:
    return secateur.load("digits_vit")


def of_class() -> nn.Module:
    return VisionTransformer(**SIZES).eval()


def headed(model: nn.Module) -> nn.Module:
    model.reset_classifier(37)
    return model.eval()


def larger(model: nn.Module) -> nn.Module:
    height, width = model.patch_embed.patch_size
    model.set_input_size(img_size=(3 * height, 2 * width))
    return model


def pooled(model: nn.Module) -> nn.Module:
    model.reset_classifier(37, global_pool="avg")
    return model.eval()


def cut(model: nn.Module) -> nn.Module:
    return secateur.prune(model, images_for(model, 16), "90% hidden", preset="magnitude").model


def shorter(model: nn.Module) -> nn.Module:
    x = images_for(model, 16)
    return secateur.prune(model, x, "drop 1 attention", preset="layer_drop").model


def narrower(model: nn.Module) -> nn.Module:
    return secateur.prune(model, images_for(model, 16), "75% width", preset="slicegpt").model


def again(model: nn.Module) -> nn.Module:
    """Trained in a loop of one's own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    model(images_for(model, 4)).square().mean().backward()
    optimizer.step()
    return model.eval()


WAYS: dict[str, tuple[Change, ...]] = {
    "head": (headed,),
    "size": (larger,),
    "pool": (pooled,),
    "twice": (cut,),
    "three times": (cut, shorter),
    "narrower": (narrower,),
    "head of a cut one": (cut, headed),
    "head of a narrower one": (narrower, headed),
    "all": (headed, shorter, again, larger),
}


@pytest.mark.parametrize("origin", [loaded, created, zoo, of_class])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_changed_in_memory_is_saved(
    way: str, origin: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = origin()
    for change in WAYS[way]:
        model = change(model)
    x = images_for(model, 8)
    secateur.save(model, tmp_path / "own")
    result = secateur.prune(model, x, "75% hidden", preset="magnitude")
    result.save(tmp_path / "cut")
    for kept, out in ((model, "own"), (result.model, "cut")):
        with torch.no_grad():
            torch.testing.assert_close(secateur.load(tmp_path / out)(x), kept(x))


def test_a_head_put_in_by_hand_is_followed(tmp_path: Path) -> None:
    model = loaded()
    model.head = nn.Linear(64, 5)
    secateur.save(model.eval(), tmp_path / "out")
    x = images_for(model, 2)
    with torch.no_grad():
        torch.testing.assert_close(secateur.load(tmp_path / "out")(x), model(x))


class Own(VisionTransformer):
    """A class that no saved directory could name."""


def test_advice_comes_before_the_work_where_nothing_can_be_saved(tmp_path: Path) -> None:
    model = Own(**SIZES).eval()

    class Watched(torch.utils.data.Dataset[Tensor]):
        told = False

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            assert any(issubclass(each.category, Advice) for each in caught)
            return torch.zeros(3, 32, 32)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = secateur.prune(model, Watched(), "75% hidden", preset="magnitude")
    assert "cannot be saved: cannot tell how this Own was built" in str(caught[0].message)
    for save in (result.save, lambda out: secateur.save(model, out)):
        with pytest.raises(UserError, match="cannot tell how this Own was built"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_another_function_now_is_refused(tmp_path: Path) -> None:
    model = loaded()
    model.blocks[1].mlp.act = nn.Tanh()
    model.blocks[0].attn.proj = nn.Linear(64, 64, bias=False)
    with pytest.raises(UserError, match="has been changed since"):
        secateur.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_trained_in_ones_own_loop_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    model = zoo()
    result = secateur.prune(model, "digits/train", "50% hidden", preset="energy", limit=60)
    own = again(result.model)
    secateur.save(own, tmp_path / "own")
    with pytest.raises(UserError, match="overwrite"):
        secateur.save(own, tmp_path / "own")
    kept = secateur.load(tmp_path / "own")
    provenance = kept.secateur_spec.provenance
    assert provenance["budget"] == "50% hidden" and provenance["dense_logits"]
    assert kept.secateur_spec.results["params"]["pruned"] < 1e6
    quiet = HealSettings.model_validate({"steps": 2, "trackers": ()})
    healed = secateur.heal(kept, "digits/train", limit=40, settings=quiet)
    assert healed.about["reference"] == "zoo:digits_vit"
    secateur.save(healed.model, tmp_path / "healed")
    found = secateur.load(tmp_path / "healed").secateur_spec.provenance
    assert found["budget"] == "50% hidden" and found["heal"]["steps"] == 2


@pytest.mark.parametrize("origin", [loaded, zoo])
def test_a_saved_directory_is_given_a_new_head(
    origin: Callable[[], nn.Module], tmp_path: Path
) -> None:
    small = narrower(origin())
    secateur.save(small, tmp_path / "small")
    with pytest.warns(Advice, match="head for 37 classes is new and untrained"):
        model = secateur.load(tmp_path / "small", num_classes=37)
    x = images_for(model, 8)
    assert model(x).shape == (8, 37)
    body = {k: v for k, v in small.state_dict().items() if not k.startswith("head.")}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in body.items())
    with pytest.warns(Advice):
        twin = secateur.load(tmp_path / "small", num_classes=37)
    assert torch.equal(twin.head.weight, model.head.weight)
    settings = FineTuneSettings.model_validate(
        {"steps": 2, "batch_size": 4, "trackers": (), "held_out": 0.0}
    )
    trained = secateur.train(model, (x, torch.arange(8)), settings=settings)
    trained.save(tmp_path / "trained")
    with torch.no_grad():
        torch.testing.assert_close(secateur.load(tmp_path / "trained")(x), trained.model(x))
    with pytest.raises(UserError, match="0 or more"):
        secateur.load(tmp_path / "small", num_classes=-1)
