"""What is observed as the stream and its update is what the model really adds up."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.models.outputs import outputs_of
from secateur.statistics import observe
from tests.hosts import HOSTS, build, images_for


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_streams_grow_by_the_updates(name: str) -> None:
    model = build(name)
    family, anatomy = family_of(model), read(model)
    seen: dict[tuple[str, str], Tensor] = {}

    def see(branch: str, site: str, x: Tensor) -> None:
        seen[branch, site] = x.clone()

    edits = [
        (family.hook_points(model, branch)[site], partial(see, branch.id, site))
        for branch in anatomy.branches
        for site in ("stream", "update")
    ]
    x = images_for(model)
    with attached(model, edits):
        logits = outputs_of(model(x))
    order = [branch.id for branch in anatomy.branches]
    first = family.arrive(model, anatomy.branches[0], family.embed(model, x))
    assert torch.allclose(first, seen[order[0], "stream"], atol=1e-5)
    for this, following in itertools.pairwise(order):
        grown = seen[this, "stream"] + seen[this, "update"]
        grown = family.arrive(model, anatomy.branch(following), grown)
        assert torch.allclose(seen[following, "stream"], grown, rtol=0, atol=1e-5)
    last = seen[order[-1], "stream"] + seen[order[-1], "update"]
    assert torch.allclose(family.head(model, last), logits, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_single_branches_are_the_model_in_pieces(name: str) -> None:
    model = build(name)
    family = family_of(model)
    x = images_for(model)
    stream_BND = family.embed(model, x)
    for branch in read(model).branches:
        arrived_BND = family.arrive(model, branch, stream_BND)
        stream_BND = family.through(model, branch)(stream_BND)
        assert torch.equal(family.alone(model, branch)(arrived_BND), stream_BND)
    assert torch.allclose(family.head(model, stream_BND), outputs_of(model(x)), atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_recorded_sums_of_blocks_are_those_of_their_branches(name: str) -> None:
    model = build(name)
    statistics = observe(
        model, as_batches(images_for(model), 2), ("branch_similarity", "block_similarity")
    )
    for block in read(model).blocks:
        whole = statistics.of("block_similarity", block.id)["update_sum"]
        parts = [statistics.of("branch_similarity", b)["update_sum"] for b in block.branches]
        assert torch.allclose(whole, sum(parts, torch.zeros(())), atol=1e-3)


@pytest.mark.parametrize("name", HOSTS)
def test_observing_leaves_no_trace(name: str) -> None:
    model = build(name).train()
    model.requires_grad_(True)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    x = images_for(model)
    needs = ("hidden_moments", "context_moments", "branch_similarity", "mlp_gates", "logit_moments")
    observe(model, as_batches(x, 2), (*needs, "attention_gates", "block_similarity"))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not x.requires_grad and x.grad is None
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert not any(m._forward_pre_hooks for m in model.modules())
