import pytest
import torch
import torch.nn.functional as F

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.statistics import backward, observe
from secateur.statistics.kinds.gradients import parts
from tests.hosts import HOSTS, build, images_for


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("seed", [None, 0])
def test_a_batch_in_parts_gives_the_same_sums(
    name: str, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    if not read(model).num_classes:
        pytest.skip("there is no loss without classes")
    batches = as_batches(images_for(model), 2)
    whole = observe(model, batches, {"sensitivity"}, sample_labels=seed)
    monkeypatch.setattr(backward, "BACK_BYTES", 1)
    assert backward.images_at_once(read(model)) == 1
    parted = observe(model, batches, {"sensitivity"}, sample_labels=seed)
    for owner, sums in whole.sums["sensitivity"].items():
        for key, value in sums.items():
            slack = 1e-4 * float(value.abs().max())
            torch.testing.assert_close(
                parted.of("sensitivity", owner)[key], value, rtol=1e-4, atol=slack
            )


def test_many_images_of_a_small_model_run_at_once() -> None:
    assert backward.images_at_once(read(build("vit"))) > 100


@pytest.mark.parametrize("name", ["efficientformer", "efficientformer_grids"])
def test_gradients_of_one_image_are_those_in_a_batch_of_two(name: str) -> None:
    """torch's own are not, behind a batch norm."""
    model = build(name)
    family, anatomy = family_of(model), read(model)
    image_1CHW = images_for(model)[:1]
    alone = observe(model, as_batches(image_1CHW, 1), {"weight_gradients"})
    logits_2C = model(image_1CHW.repeat(2, 1, 1, 1))
    F.cross_entropy(logits_2C, logits_2C.argmax(-1)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    for branch in anatomy.branches:
        weights = family.weights(model, branch)
        for key, gradient in parts(weights).items():
            slack = 1e-4 * float(gradient.abs().max())
            torch.testing.assert_close(
                alone.of("weight_gradients", branch.id)[key], gradient, rtol=1e-3, atol=slack
            )
