"""The distances between student and teacher, against their definitions."""

import math

import pytest
import torch

from secateur.models.runner import Runner
from secateur.training.distillation.losses import branch_loss, divergence, output_loss, token_error
from tests.hosts import HOSTS, build, images_for


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_runner_gives_what_the_model_gives(name: str) -> None:
    model = build(name)
    x = images_for(model)
    seen = Runner.of(model).trace(x)
    assert torch.allclose(seen.logits_BC, model(x), atol=1e-5)


def test_divergence_of_two_known_distributions() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(divergence(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_a_constant_has_error_one_and_the_class_token_counts_as_all_patches() -> None:
    teacher = torch.randn(64, 5, 8)
    assert float(token_error(teacher, teacher, 1)) == 0
    constant = torch.cat([teacher[:, :1].mean((0, 1)).expand(64, 1, 8), teacher[:, 1:]], dim=1)
    assert float(token_error(constant, teacher, 1)) == pytest.approx(0.5, rel=1e-4)
    assert float(token_error(constant[:, :1], teacher[:, :1], 0)) == pytest.approx(1, rel=1e-4)


def test_output_loss_adds_its_parts() -> None:
    dense, other = build("vit"), build("vit")
    with torch.no_grad():
        other.head.bias += torch.randn(10)
        other.blocks[2].mlp.fc2.bias += 1
    x = images_for(dense)
    a, b = Runner.of(other).trace(x), Runner.of(dense).trace(x)
    kl = divergence(a.logits_BC / 2, b.logits_BC / 2)
    tokens = token_error(a.stream_BND, b.stream_BND, 1)
    assert kl.item() > 0 and tokens.item() > 0
    assert torch.allclose(output_loss(a, b, 1, 2.0, 3.0), 4 * kl + 3 * tokens)
    assert output_loss(b, b, 1, 2.0, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_branch_loss_reaches_every_branch_but_not_through_the_next() -> None:
    dense, student = build("vit"), build("vit")
    x = images_for(dense)
    with torch.no_grad():
        target = Runner.of(dense).trace(x)
        student.blocks[1].mlp.fc2.bias += 1
    loss = branch_loss(Runner.of(student), x, target)
    assert loss.item() > 0
    loss.backward()

    def slope(block: int) -> float:
        return float(student.blocks[block].mlp.fc2.bias.grad.abs().max())

    # Block 0 is still right, so it gets no gradient although what follows is wrong.
    assert slope(0) < 1e-6 < slope(1)
    assert student.head.weight.grad is None
