"""Leaving branches out by steps gives what the model with masked updates gives."""

import itertools
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.ablation.layers import in_pairs, without_each, without_more_and_more
from secateur.ablation.probe_runner import ProbeRunner
from secateur.data.batches import as_batches
from secateur.models.family import family_of
from secateur.models.hook_points import attached
from secateur.models.host import host_of
from secateur.statistics import observe
from secateur.statistics.divergence import degradation
from secateur.surgery.replace import mean_update
from tests.hosts import anatomy_of, build, images_for

HOSTS = ("vit", "deit3", "vit_post_norm")


def made(name: str) -> tuple[nn.Module, Tensor, ProbeRunner]:
    model = build(name)
    images = images_for(model, 6)
    statistics = observe(model, as_batches(images, 4), ["update_mean"])
    anatomy = anatomy_of(name)
    means = {branch.id: mean_update(statistics, branch) for branch in anatomy.branches}
    return model, images, ProbeRunner.of(host_of(model), images, means)


def masked_kl(name: str, model: nn.Module, work: ProbeRunner, gone: Iterable[str]) -> float:
    """KL(dense || model whose updates of some branches are held at their mean), by hooks."""
    images = images_for(model, 6)
    edits, gone = [], set(gone)
    for branch in anatomy_of(name).branches:
        if branch.id in gone:
            mean = work.fills[branch.id]
            hook_point = family_of(model).hook_points(model, branch)["update"]
            edits.append((hook_point, lambda x, mean=mean: mean.to(x).expand_as(x)))
    with torch.no_grad():
        dense = model(images).log_softmax(-1)
        with attached(model, edits):
            changed = model(images).log_softmax(-1)
    return float(F.kl_div(changed, dense, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("name", HOSTS)
def test_each_pair_and_series_are_what_masking_gives(name: str) -> None:
    model, _, work = made(name)
    alone = without_each(work, {branch: (branch,) for branch in work.names})
    assert list(alone) == list(work.names)
    for branch, found in alone.items():
        expected = masked_kl(name, model, work, [branch])
        assert found.divergence == pytest.approx(expected, rel=1e-3, abs=1e-6)
    chosen = (work.names[1], work.names[3], work.names[4])
    pairs = in_pairs(work, chosen)
    assert set(pairs) == set(itertools.combinations(chosen, 2))
    for pair, found in pairs.items():
        expected = masked_kl(name, model, work, pair)
        assert found.divergence == pytest.approx(expected, rel=1e-3, abs=1e-6)
    order = [(work.names[4],), (work.names[0], work.names[1])]
    series = without_more_and_more(work, order, (1, 2))
    assert series[0].divergence == pytest.approx(alone[work.names[4]].divergence, rel=1e-5)
    expected = masked_kl(name, model, work, (work.names[i] for i in (0, 1, 4)))
    assert series[1].divergence == pytest.approx(expected, rel=1e-3)


def test_whole_blocks_and_their_cost_in_steps() -> None:
    model, _, work = made("vit")
    assert (len(work.runner), work.steps_run) == (6, 6)
    blocks = {block.id: block.branches for block in anatomy_of("vit").blocks}
    found = without_each(work, blocks)
    # 4 + 2 + 0 steps after the blocks, and the dense stream advanced five times.
    assert work.steps_run == 6 + 6 + 5
    expected = masked_kl("vit", model, work, blocks["blocks.1"])
    assert found["blocks.1"].divergence == pytest.approx(expected, rel=1e-3)
    assert 0 <= found["blocks.1"].agreement <= 1  # type: ignore[operator]


def test_the_same_weights_do_no_damage_and_others_do() -> None:
    model, images, work = made("vit")
    anatomy, family = anatomy_of("vit"), family_of(model)
    same = {b.id: family.weights(model, b) for b in anatomy.branches}
    found = work.with_weights(same)
    assert found.divergence == pytest.approx(0, abs=1e-6) and found.agreement == 1
    other = build("vit_no_biases")
    branch = anatomy.branches[3]
    found = work.with_weights({branch.id: family.weights(other, branch)})
    assert found.divergence > 0.01
    assert torch.equal(work.runner.model(images), model(images))


def test_without_classes_damage_is_an_angle() -> None:
    dense, turned = torch.eye(2), torch.tensor([[0.0, 3.0], [0.0, 2.0]])
    found = degradation(dense, turned, 0)
    assert found.divergence == pytest.approx(0.5) and found.agreement is None
    same = degradation(dense, dense, 2)
    assert (same.divergence, same.agreement) == (0, 1)
