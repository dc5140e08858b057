"""Attention that hooks cannot see into is replaced by ours, with equal outputs, in a copy."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

from secateur.measurement.counting import counted
from secateur.models.caches import observable
from secateur.models.family import family_of, read
from secateur.models.modules import SlimAttention
from secateur.models.outputs import outputs_of
from secateur.models.walk_check import require_walk
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.verbs.prune import prune
from tests.hosts import HOSTS, as_made, images_for, named, settled

MORE = {
    "eva_plain": partial(named, "eva_giant_patch14_224"),
    "relpos_table": partial(named, "vit_relpos_base_patch32_plus_rpn_256"),
    "relpos_shared": partial(named, "vit_srelpos_small_patch16_224", rel_pos_dim=16),
}
"""Hosts that differ from others only in what ours does not keep."""
MODELS = {name: as_made(name) for name in HOSTS}
MODELS |= {name: settled(make(), name) for name, make in MORE.items()}
UNSEEN = [name for name, model in MODELS.items() if family_of(model).unseen(model)]
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", UNSEEN)
@torch.no_grad()
def test_ours_computes_the_same_and_the_given_model_stays(name: str) -> None:
    model = copy.deepcopy(MODELS[name])
    before, x = dict(model.named_modules()), images_for(model)
    ours = observable(model)
    assert dict(model.named_modules()) == before
    assert torch.allclose(outputs_of(ours(x)), outputs_of(model(x)), rtol=0, atol=TOLERANCE)
    assert not family_of(ours).unseen(ours)
    attention = [b.id for b in read(ours).branches if b.kind == "attention"]
    assert all(isinstance(ours.get_submodule(path), SlimAttention) for path in attention)
    points = family_of(ours).hook_points(ours, read(ours).branch(attention[0]))
    assert {"query", "key", "value", "context"} <= points.keys()


@pytest.mark.parametrize("name", ["torchvision_vit", "beitv2_shared", "relpos_mlp", "eva02_packed"])
@pytest.mark.parametrize("preset", ["magnitude", "spectral"])
def test_what_is_pruned_is_saved_loaded_and_exported(
    name: str, preset: str, tmp_path: Path
) -> None:
    model = MODELS[name]
    x = images_for(model, 16)
    groups = ["vo", "hidden"]
    result = prune(model, x, "85% macs", preset=preset, groups=groups, exact_tail=False)
    result.save(tmp_path / "small")
    again = load(tmp_path / "small")
    with torch.no_grad():
        expected = outputs_of(result.model(x))
        assert torch.equal(outputs_of(again(x)), expected)
        assert float((expected - outputs_of(model(x))).abs().max()) > 1e-3
        assert read(again).cost() == result.after.cost() == counted(again, read(again).input_size)
        assert base_of(again) == base_of(model)
        program = torch.export.export(again, (x[:1],)).module()
        assert torch.allclose(outputs_of(program(x[:1])), expected[:1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hosts_as_they_are_walk_like_their_forward_pass_and_cost_what_is_counted(name: str) -> None:
    model = MODELS[name]
    require_walk(model)
    assert read(model).cost().params == sum(p.numel() for p in model.parameters())
    ours = observable(model)
    assert read(ours).cost() == counted(ours, read(ours).input_size)


def test_some_hosts_are_unseen_and_some_are_not() -> None:
    assert {"torchvision_vit", "beit", "relpos_mlp", *MORE} <= set(UNSEEN) < set(MODELS)
