"""A model in training mode is pruned and analysed as it evaluates, and left in its mode."""

import pytest
import torch
from torch import nn

import secateur
from tests.hosts import build, images_for


def stochastic(name: str, *, training: bool) -> nn.Module:
    model = build(name)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.5
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return model.train(training)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("name", ["vit", "efficientformer_grids"])
@pytest.mark.parametrize("preset", ["spectral", "energy", "sleb"])
def test_pruned_alike_in_training_mode(name: str, preset: str) -> None:
    found = []
    for training in (False, True):
        model = stochastic(name, training=training)
        before = modes(model)
        images = torch.randn(
            24, *images_for(model).shape[1:], generator=torch.Generator().manual_seed(0)
        )
        budget = "drop 1 blocks" if preset == "sleb" else "80% macs"
        result = secateur.prune(model, images, budget, preset=preset, effort="quick", batch_size=4)
        assert modes(model) == before
        found.append(result.model.state_dict())
    evaluated, trained = found
    assert evaluated.keys() == trained.keys()
    for key, value in evaluated.items():
        assert torch.equal(trained[key], value), key


def test_analysed_alike_in_training_mode() -> None:
    found = []
    for training in (False, True):
        model = stochastic("vit", training=training)
        before = modes(model)
        images = torch.randn(
            24, *images_for(model).shape[1:], generator=torch.Generator().manual_seed(0)
        )
        record = secateur.analyze(model, images, latency=False, batch_size=4).record
        assert modes(model) == before
        found.append(record["layers"])
    assert found[0] == found[1]
