import pytest
import torch
from torch import nn

from secateur.measurement.modes import example_images
from secateur.models.caches import evaluating


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model.train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_example_images_are_the_same_each_time_and_leave_the_global_seed() -> None:
    model = nn.Linear(2, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    images = example_images(model, (3, 4, 5), batch=2)
    assert images.shape == (2, 3, 4, 5)
    assert images.dtype == torch.float64
    assert torch.equal(images, example_images(model, (3, 4, 5), batch=2))
    assert not torch.equal(images, example_images(model, (3, 4, 5), batch=2, seed=1))
    assert torch.equal(state, torch.get_rng_state())
