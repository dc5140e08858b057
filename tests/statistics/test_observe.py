"""The pass itself: sums do not depend on batches, nothing of the images stays behind."""

import gc

import pytest
import torch
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import read
from secateur.statistics import Statistics, observe, statistics_kinds
from tests.hosts import HOSTS, build, images_for

EVERY_KIND = statistics_kinds.names()


def labelled(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    return images_for(model, count), torch.arange(count) % 10


def everything(statistics: Statistics) -> dict[tuple[str, str, str], Tensor]:
    return {
        (kind, owner, key): value
        for kind, by_owner in statistics.sums.items()
        for owner, sums in by_owner.items()
        for key, value in sums.items()
    }


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sums_do_not_depend_on_the_batches(kind: str) -> None:
    model = build("vit")
    images, labels = labelled(model, 7)
    whole = observe(model, as_batches((images, labels), 7), [kind])
    parts = observe(model, as_batches((images, labels), 3), [kind])
    single = observe(model, as_batches((images, labels), 1), [kind])
    assert whole.images == parts.images == single.images == 7
    found = everything(whole)
    assert found, "nothing was recorded"
    for other in (everything(parts), everything(single)):
        assert other.keys() == found.keys()
        for key, value in found.items():
            scale = float(value.abs().max())
            assert torch.allclose(other[key], value, rtol=1e-4, atol=1e-4 * scale), key


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sums_add_up_over_sets_of_images(kind: str) -> None:
    model = build("vit")
    images, labels = labelled(model, 6)
    whole = everything(observe(model, as_batches((images, labels), 6), [kind]))
    first = observe(model, as_batches((images[:2], labels[:2]), 2), [kind])
    both = first.plus(observe(model, as_batches((images[2:], labels[2:]), 4), [kind]))
    assert both.images == 6 and everything(both).keys() == whole.keys()
    for key, value in whole.items():
        scale = float(value.abs().max())
        assert torch.allclose(everything(both)[key], value, rtol=1e-4, atol=1e-4 * scale), key


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sums_are_as_large_for_many_images_as_for_few(kind: str) -> None:
    model = build("vit")
    few = everything(observe(model, as_batches(labelled(model, 2), 2), [kind]))
    many = everything(observe(model, as_batches(labelled(model, 11), 2), [kind]))
    assert {key: value.shape for key, value in few.items()} == {
        key: value.shape for key, value in many.items()
    }
    for value in many.values():
        assert not value.requires_grad and value.dtype.itemsize >= 4
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_no_activation_outlives_its_batch() -> None:
    model = build("vit")
    tokens, batch = read(model).tokens, 5
    alive: list[int] = []

    def count(done: int) -> None:
        if done != 2 * batch:
            return
        gc.collect()
        shapes = [o.shape[:2] for o in gc.get_objects() if type(o) is Tensor]
        alive.append(shapes.count(torch.Size((batch, tokens))))

    observe(model, as_batches(labelled(model, 2 * batch), batch), EVERY_KIND, on_batch=count)
    assert alive == [0]


def test_progress_counts_images() -> None:
    model = build("vit")
    done: list[int] = []
    observe(model, as_batches(images_for(model, 5), 2), ["update_mean"], on_batch=done.append)
    assert done == [2, 4, 5]


def test_only_the_branches_asked_for_are_watched() -> None:
    model = build("vit")
    statistics = observe(
        model,
        as_batches(images_for(model), 4),
        ["update_mean", "hidden_energies"],
        only=["blocks.1.mlp", "blocks.2.attn"],
    )
    assert set(statistics.sums["update_mean"]) == {"blocks.1.mlp", "blocks.2.attn"}
    assert set(statistics.sums["hidden_energies"]) == {"blocks.1.mlp"}
    assert set(statistics.about("blocks.1.mlp")) == {"update_mean", "hidden_energies"}
    assert statistics.about("blocks.0.mlp") == {}


def test_gradients_use_the_labels_or_else_the_predictions() -> None:
    model = build("vit")
    images = images_for(model, 6)
    predicted = model(images).argmax(-1)
    unlabelled = observe(model, as_batches(images, 3), ["mlp_gates"])
    as_labels = observe(model, as_batches((images, predicted), 3), ["mlp_gates"])
    wrong = observe(model, as_batches((images, (predicted + 1) % 10), 3), ["mlp_gates"])
    gates = [
        e.of("mlp_gates", "blocks.0.mlp")["hidden_abs"] for e in (unlabelled, as_labels, wrong)
    ]
    assert torch.equal(gates[0], gates[1])
    assert not torch.allclose(gates[0], gates[2], rtol=0.1)


def test_drawn_labels_come_from_the_seed() -> None:
    model = build("vit")
    batches = as_batches(images_for(model, 8), 8)
    draws = [
        observe(model, batches, ["mlp_gates"], sample_labels=seed).of("mlp_gates", "blocks.0.mlp")
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0]["hidden_abs"], draws[1]["hidden_abs"])
    assert not torch.equal(draws[0]["hidden_abs"], draws[2]["hidden_abs"])


def test_modes_and_flags_return_also_after_an_error() -> None:
    model = build("vit").train()
    model.blocks[1].eval()
    model.blocks[0].requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError):
        observe(model, as_batches(torch.zeros(2, 1, 32, 32), 2), ["mlp_gates", "update_mean"])
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["hidden_energies", "context_moments", "mlp_gates"])
def test_activations_that_are_not_finite_are_refused(kind: str) -> None:
    model = build("vit")
    with torch.no_grad():
        model.blocks[0].norm1.weight[0] = float("nan")
    images = images_for(model)
    with pytest.raises(UserError, match=rf"blocks\.\d\.(attn|mlp) gives values .*{kind}"):
        observe(model, as_batches((images, torch.zeros(4, dtype=torch.long)), 2), [kind])


def test_half_precision_models_sum_in_single_precision() -> None:
    model = build("vit")
    images = images_for(model, 8)
    kinds = ["hidden_moments", "update_mean", "branch_similarity", "logit_moments"]
    exact = everything(observe(model, as_batches(images, 4), kinds))
    rounded = everything(
        observe(model.to(torch.bfloat16), as_batches(images.to(torch.bfloat16), 4), kinds)
    )
    for key, value in rounded.items():
        assert value.dtype in (torch.float32, torch.float64)
        assert torch.allclose(value, exact[key], rtol=0.1, atol=0.1 * float(exact[key].abs().max()))


@pytest.mark.parametrize("name", HOSTS)
def test_a_pass_ends_behind_the_last_place_that_is_looked_at(name: str) -> None:
    model = build(name)
    anatomy, ends = read(model), 0

    def at_end(*_: object) -> None:
        nonlocal ends
        ends += 1

    model.register_forward_hook(at_end)
    batches, first = as_batches(images_for(model), 2), anatomy.branches[0].id
    early = observe(model, batches, {"update_mean"}, only=[first])
    assert ends == 0
    late = observe(model, batches, {"update_mean", "block_similarity"})
    assert ends == len(batches)
    for key, value in late.of("update_mean", first).items():
        assert torch.equal(early.of("update_mean", first)[key], value)
