"""Where a device has no double precision, what needs it is refused at once, and the rest works."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import UserError
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from tests import standin_device
from tests.device.hosts import FAMILIES, images_of, labels_of, model_of, on
from tests.device.test_verbs import QUIET, TRAINED, shrunk


@pytest.fixture
def single(device: torch.device) -> Iterator[torch.device]:
    """A device without double precision."""
    if device.type not in (standin_device.NAME, "mps"):
        pytest.skip(f"{device.type} has double precision")
    standin_device.lacking.add("double")
    yield device
    standin_device.lacking.clear()


def test_what_needs_it_is_refused(single: torch.device) -> None:
    model = model_of("vit").to(single)
    images = images_of(model_of("vit"))
    sentence = f"device '{single.type}:0' has no double precision, which"
    with pytest.raises(UserError, match=f"{sentence} pruning needs"):
        secateur.prune(model, images, "80% macs")
    with pytest.raises(UserError, match=f"{sentence} the analysis needs"):
        secateur.analyze(model, images)
    with pytest.raises(UserError, match=f"{sentence} learning masks needs"):
        secateur.learn(model, images, "80% macs")
    settings = HealSettings.model_validate(QUIET | {"refit_head": True})
    with pytest.raises(UserError, match=f"{sentence} refit_head needs"):
        secateur.heal(model, images, reference=model_of("vit"), settings=settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_works(family: str, single: torch.device) -> None:
    small = shrunk(family).to(single)
    images = images_of(model_of(family), TRAINED)
    pair = (images, labels_of(images))
    healed = secateur.heal(
        small, pair, reference=model_of(family), settings=HealSettings.model_validate(QUIET)
    )
    trained = secateur.train(small, pair, settings=FineTuneSettings.model_validate(QUIET))
    assert on(healed.model, single) and on(trained.model, single)
    assert secateur.evaluate(healed.model, pair, reference=model_of(family)).kl is not None
    secateur.inspect(small)


def test_saved_models_load_there(single: torch.device, tmp_path: Path) -> None:
    model = secateur.load("digits_vit")
    secateur.prune(model, "digits/train", "80% macs", preset="magnitude", limit=16).save(tmp_path)
    settings = HealSettings.model_validate(QUIET | {"steps": 1})
    small = secateur.load(tmp_path, device=single)
    assert on(small, single)
    healed = secateur.heal(small, "digits/train", limit=16, settings=settings)
    healed.save(tmp_path / "healed")
    again = secateur.load(tmp_path / "healed", device=single)
    assert secateur.evaluate(again, "digits/test", limit=20).n == 20
