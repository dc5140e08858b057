"""Gradients with respect to gates against finite differences of the loss under a mask."""

from collections.abc import Callable
from types import EllipsisType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.statistics import observe
from tests.hosts import build, images_for

STEP = 1e-4
LABELS = torch.tensor([3, 1, 4])
Unit = int | tuple[int, int] | EllipsisType


@torch.no_grad()
def loss_under(
    model: nn.Module, images: Tensor, branch: str, site: str, gate: Callable[[Tensor], Tensor]
) -> Tensor:
    """The loss of each image with a site of a branch multiplied by gates."""
    hook_point = family_of(model).hook_points(model, read(model).branch(branch))[site]
    with attached(model, [(hook_point, lambda x: x * gate(x))]):
        return F.cross_entropy(model(images), LABELS, reduction="none")


def difference(model: nn.Module, images: Tensor, branch: str, site: str, unit: Unit) -> Tensor:
    """dL/dgate of each image, by central differences."""

    def gate(sign: int) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            values = torch.ones(x.shape[2:], dtype=x.dtype)
            values[unit] = 1 + sign * STEP
            return values

        return of

    above = loss_under(model, images, branch, site, gate(1))
    below = loss_under(model, images, branch, site, gate(-1))
    return (above - below) / (2 * STEP)


CASES: dict[str, tuple[str, str, list[Unit]]] = {
    "hidden": ("mlp", "hidden", [5, 40]),
    "qk": ("attn", "query", [(1, 3), (0, 7)]),
    "vo": ("attn", "context", [(0, 2), (1, 5)]),
    "heads": ("attn", "context", [0, 1]),
    "branch": ("attn", "update", [...]),
}
"""Part of the block, where its gates sit, and some of its units."""


@pytest.mark.parametrize("name", ["vit", "deit3", "vit_post_norm", "vit_qk_norm"])
@pytest.mark.parametrize("group", CASES)
def test_gates_are_gradients_of_the_loss(name: str, group: str) -> None:
    part, site, units = CASES[group]
    model = build(name).double()
    images = images_for(model, 3).double()
    branch, kind = f"blocks.1.{part}", "mlp_gates" if part == "mlp" else "attention_gates"
    sums = observe(model, as_batches((images, LABELS), 2), [kind]).of(kind, branch)
    for unit in units:
        slope_B = difference(model, images, branch, site, unit)
        size, square = float(slope_B.abs().sum()), float(slope_B.square().sum())
        assert float(sums[f"{group}_abs"][unit]) == pytest.approx(size, rel=1e-3)
        assert float(sums[f"{group}_square"][unit]) == pytest.approx(square, rel=1e-3)


def test_a_gate_on_queries_is_a_gate_on_keys() -> None:
    model = build("vit").double()
    images = images_for(model, 3).double()
    on_query = difference(model, images, "blocks.1.attn", "query", (1, 3))
    on_key = difference(model, images, "blocks.1.attn", "key", (1, 3))
    assert torch.allclose(on_query, on_key, rtol=1e-4)
