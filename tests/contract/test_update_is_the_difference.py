"""For every host: the recorded update of a branch is x_out - x_in of the residual stream."""

from functools import partial

import pytest
import torch
from torch import Tensor

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.statistics import observe
from tests.hosts import HOSTS, build, images_for


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_update_is_what_the_stream_gained(name: str, training: bool) -> None:
    """After LayerScale and, post-norm, after the norm; stochastic depth is off while observing."""
    model = build(name)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.5
    model.train(training)
    family, anatomy = family_of(model), read(model)
    images = images_for(model)
    statistics = observe(model, as_batches(images, 2), ["branch_similarity", "update_mean"])
    model.eval()
    updates: dict[str, Tensor] = {}

    def see(branch: str, x: Tensor) -> None:
        updates[branch] = x.clone()

    edits = [(family.hook_points(model, b)["update"], partial(see, b.id)) for b in anatomy.branches]
    with attached(model, edits):
        model(images)
    x_BND = family.embed(model, images)
    for branch in anatomy.branches:
        arrived_BND = family.arrive(model, branch, x_BND)
        after_BND = family.alone(model, branch)(arrived_BND)
        gained = after_BND - arrived_BND
        assert torch.allclose(updates[branch.id], gained, rtol=0, atol=1e-5), branch.id
        sums = statistics.of("branch_similarity", branch.id)
        recorded = sums["update_sum"] / sums["count"]
        assert torch.allclose(recorded.float(), gained.mean((0, 1)), rtol=1e-4, atol=1e-5)
        assert float(sums["update_square"]) == pytest.approx(
            float(gained.double().square().sum()), rel=1e-4
        )
        x_BND = after_BND
