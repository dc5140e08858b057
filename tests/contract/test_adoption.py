"""Attention that hooks cannot see into is replaced by ours, with equal outputs, in a copy."""

import copy

import pytest
import torch
from torch import nn

from secateur.measurement.counting import counted
from secateur.models.caches import observable
from secateur.models.family import family_of, read
from secateur.models.modules import SlimAttention
from secateur.models.walk_check import require_walk
from tests.hosts import HOSTS, host_of, images_for

UNSEEN = [name for name in HOSTS if family_of(host_of(name)).unseen(host_of(name))]
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", UNSEEN)
@torch.no_grad()
def test_ours_computes_the_same_and_the_given_model_stays(name: str) -> None:
    model = copy.deepcopy(host_of(name))
    before, x = dict(model.named_modules()), images_for(model)
    ours = observable(model)
    assert dict(model.named_modules()) == before
    assert torch.allclose(ours(x), model(x), rtol=0, atol=TOLERANCE)
    assert not family_of(ours).unseen(ours)
    attention = [b.id for b in read(ours).branches if b.kind == "attention"]
    assert all(isinstance(ours.get_submodule(path), SlimAttention) for path in attention)
    points = family_of(ours).hook_points(ours, read(ours).branch(attention[0]))
    assert {"query", "key", "value", "context"} <= points.keys()


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_hosts_as_they_are_walk_like_their_forward_pass_and_cost_what_is_counted(name: str) -> None:
    model = host_of(name)
    require_walk(model)
    assert read(model).cost().params == sum(p.numel() for p in model.parameters())
    ours = observable(model)
    assert read(ours).cost() == counted(ours, read(ours).input_size)


def test_some_hosts_are_unseen_and_some_are_not() -> None:
    assert 0 < len(UNSEEN) < len(HOSTS)
    assert all(isinstance(host_of(name), nn.Module) for name in UNSEEN)
