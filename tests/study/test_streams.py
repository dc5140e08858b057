"""Pruned models that start from kept streams say what they say when run from the images on."""

import pytest
import torch
from torch import nn

from secateur.models.caches import copy_of
from secateur.models.host import host_of
from secateur.models.outputs import outputs_of
from secateur.study import streams as rooms
from secateur.study.streams import Streams, keep_streams
from tests.hosts import HOSTS, images_for, shared


def kept(model: nn.Module) -> tuple[Streams, list[torch.Tensor], list[torch.Tensor]]:
    images = list(images_for(model, 3).split(2))
    streams, logits = keep_streams(host_of(model), images)
    return streams, logits, images


def require_same(streams: Streams, smaller: nn.Module, images: list[torch.Tensor]) -> None:
    found = streams.logits(smaller.eval())
    assert found is not None
    with torch.inference_mode():
        for logits_BC, images_BCHW in zip(found, images, strict=True):
            own_BC = outputs_of(smaller(images_BCHW))
            torch.testing.assert_close(logits_BC, own_BC, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HOSTS)
def test_whatever_differs_the_outputs_are_those_of_the_whole_model(name: str) -> None:
    model = shared(name)
    streams, logits, images = kept(model)
    with torch.inference_mode():
        own = [outputs_of(model(x)) for x in images]
        torch.testing.assert_close(torch.cat(logits), torch.cat(own))
    family, branches = streams.host.family, streams.host.anatomy.branches
    for gone in ({branches[-1].id}, {branches[0].id}, {branches[2].id, branches[3].id}):
        smaller = copy_of(model)
        family.drop_(smaller, set(gone))
        require_same(streams, smaller, images)
    for branch in (branches[0], branches[-1]):
        smaller = copy_of(model)
        with torch.no_grad():
            for parameter in smaller.get_submodule(branch.id).parameters():
                parameter.mul_(1.1)
        require_same(streams, smaller, images)


def test_blocks_before_the_first_difference_are_not_run() -> None:
    model = shared("vit")
    streams, _, _ = kept(model)
    smaller = copy_of(model)
    last = streams.host.anatomy.blocks[-1]
    with torch.no_grad():
        for parameter in smaller.get_submodule(last.id).parameters():
            parameter.mul_(1.1)
    ran: list[str] = []
    for block in streams.host.anatomy.blocks:
        module = smaller.get_submodule(block.branches[0])
        module.register_forward_hook(lambda *_, name=block.id: ran.append(name))
    assert streams.logits(smaller) is not None
    assert set(ran) == {last.id}


def test_a_change_outside_of_blocks_is_no_case_for_kept_streams() -> None:
    model = shared("vit")
    streams, _, _ = kept(model)
    smaller = copy_of(model)
    with torch.no_grad():
        next(smaller.parameters()).add_(0.1)
    assert streams.logits(smaller) is None


def test_few_streams_are_kept_where_all_would_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared("vit")
    streams, _, _ = kept(model)
    size = sum(x.nbytes for parts in streams.kept.values() for x in parts)
    monkeypatch.setattr(rooms, "LIMIT", size // 2)
    fewer, _, images = kept(model)
    assert 0 in fewer.kept and len(fewer.kept) < len(streams.kept)
    assert sum(x.nbytes for parts in fewer.kept.values() for x in parts) <= size // 2
    smaller = copy_of(model)
    fewer.host.family.drop_(smaller, {fewer.host.anatomy.branches[-1].id})
    require_same(fewer, smaller, images)
