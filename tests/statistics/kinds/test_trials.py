"""Trials against the same experiments done by hand on a copy of the model."""

import copy

import pytest
import torch
import torch.nn.functional as F

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.statistics import observe
from tests.hosts import HOSTS, anatomy_of, build, images_for
from tests.statistics.kinds.raw import raw


@pytest.mark.parametrize("name", [name for name in HOSTS if anatomy_of(name).num_classes])
@torch.no_grad()
def test_the_damage_is_that_of_the_model_without_the_layer(name: str) -> None:
    model = build(name)
    images, labels = images_for(model, 5), torch.tensor([1, 2, 3, 4, 5])
    batches = as_batches((images, labels), 2)
    found = observe(model, batches, ["branch_removal", "block_removal"])
    dense = model(images).double().log_softmax(-1)
    anatomy = read(model)
    block = anatomy.blocks[1]
    cases = {"branch_removal": (block.branches[0],), "block_removal": block.branches}
    for kind, gone in cases.items():
        smaller = copy.deepcopy(model)
        family_of(model).drop_(smaller, set(gone))
        changed = smaller(images).double().log_softmax(-1)
        sums = found.of(kind, block.id if kind == "block_removal" else gone[0])
        kl = F.kl_div(changed, dense, log_target=True, reduction="sum")
        ce = F.nll_loss(changed, labels, reduction="sum")
        ce = ce - F.nll_loss(dense, labels, reduction="sum")
        assert float(sums["images"]) == 5
        assert torch.allclose(sums["delta_kl"], kl, rtol=1e-4, atol=1e-4)
        assert torch.allclose(sums["delta_ce"], ce, rtol=1e-4, atol=1e-4)


def test_without_labels_the_model_agrees_with_itself() -> None:
    model = build("vit")
    images = images_for(model, 4)
    own = observe(model, as_batches(images, 2), ["branch_removal"])
    given = observe(
        model, as_batches((images, model(images).argmax(-1)), 2), ["branch_removal"]
    ).of("branch_removal", "blocks.0.mlp")
    assert torch.equal(own.of("branch_removal", "blocks.0.mlp")["delta_ce"], given["delta_ce"])


@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "vit_post_norm"])
def test_windows_compare_the_streams_at_their_ends(name: str) -> None:
    model = build(name)
    images = images_for(model, 5)
    sums = observe(model, as_batches(images, 2), ["window_similarity"]).of(
        "window_similarity", "blocks.1"
    )
    start, middle, update = (
        raw(model, images, f"blocks.{block}.{part}", site)[0]
        for block, part, site in [
            (1, "attn", "stream"),
            (2, "attn", "stream"),
            (2, "mlp", "update"),
        ]
    )
    (last,) = raw(model, images, "blocks.2.mlp", "stream")
    for length, end in enumerate((middle, last + update), start=1):
        cosine = F.cosine_similarity(start, end, dim=-1)
        assert float(sums["cosine"][length - 1]) == pytest.approx(float(cosine.sum()), rel=1e-5)
        angles = cosine.clamp(-1, 1).arccos() / torch.pi
        assert float(sums["angle"][length - 1]) == pytest.approx(float(angles.sum()), rel=1e-4)
    assert float(sums["count"]) == start.shape[0] * start.shape[1]


def test_trials_do_not_disturb_what_is_summed_beside_them() -> None:
    model = build("vit")
    batches = as_batches(images_for(model, 5), 2)
    alone = observe(model, batches, ["branch_similarity", "block_similarity", "mlp_gates"])
    beside = observe(
        model,
        batches,
        ["branch_similarity", "block_similarity", "mlp_gates", "branch_removal"],
    )
    for kind, owners in alone.sums.items():
        for owner, sums in owners.items():
            for key, value in sums.items():
                assert torch.equal(beside.of(kind, owner)[key], value), (kind, owner, key)
