"""Backward passes of a batch in parts, and the labels that they draw.

Legend: B batch, C channels or classes, H height, W width.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data.batches import Batch, Batches
from secateur.models.outputs import outputs_of
from secateur.models.types import Anatomy
from secateur.statistics.divergence import LossName
from secateur.statistics.processes import Processes

BACK_BYTES = 500_000_000
"""About how much memory the activations of a backward pass may take; batches are run in parts."""


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Let gradients come to batch norms in the usual layout.

    torch (2.14, on the CPU) gives wrong gradients through a batch norm in evaluation mode when
    there is one image and the gradient that comes is a transposed view, as in EfficientFormer.
    """

    def in_order(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(torch.Tensor.contiguous)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                stack.callback(module.register_forward_hook(in_order).remove)
        yield


def images_at_once(anatomy: Anatomy) -> int:
    """How many images a backward pass may hold the activations of."""
    floats = 0
    for branch in anatomy.branches:
        inner = 2 * branch.shape.size("hidden") if branch.kind == "mlp" else 6 * branch.width
        floats += branch.tokens * (2 * branch.width + inner)
    return max(1, BACK_BYTES // (4 * max(floats, 1)))


def parts(batch: Batch, at_once: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The images and labels of a batch in parts of at most `at_once`."""
    for start in range(0, len(batch.images_BCHW), at_once):
        part = slice(start, start + at_once)
        yield batch.images_BCHW[part], None if batch.labels_B is None else batch.labels_B[part]


def run_back(
    model: nn.Module,
    images_BCHW: Tensor,
    labels_B: Tensor | None,
    generator: torch.Generator | None,
    loss: LossName = "kl",
) -> None:
    """Forward and backward pass of `output_loss`, summed over the batch."""
    # WHY: with frozen weights, an input that takes gradients is what makes autograd record.
    logits_BC = outputs_of(model(images_BCHW.detach().requires_grad_()))
    output_loss(logits_BC, labels_B, generator, loss).backward()


def output_loss(
    outputs_BC: Tensor,
    labels_B: Tensor | None,
    generator: torch.Generator | None,
    loss: LossName,
) -> Tensor:
    """The loss whose gradient tells how the outputs depend on what is inside, summed over a batch.

    Outputs are (B, C), or (B, T, C) where every token counts. `kl`: the cross-entropy of the
    labels, else of the predictions; `bce`: the binary one of the decisions. With a `generator`,
    labels are drawn from the model's own distribution instead, so that squared gradients estimate
    the Fisher metric. `mse` and `cosine` compare with targets that the model meets already, where
    the gradient of the error itself is zero: it is that of the outputs (of unit length for
    `cosine`), each times a normal draw of the generator or, without one, their plain sum.
    """
    if outputs_BC.ndim > 2:
        outputs_BC, labels_B = outputs_BC.flatten(0, -2), None
    outputs_BC = outputs_BC.float()
    if loss in ("mse", "cosine"):
        if loss == "cosine":
            outputs_BC = F.normalize(outputs_BC, dim=-1)
        if generator is None:
            return outputs_BC.sum()
        noise_BC = torch.randn(outputs_BC.shape, generator=generator)
        return (outputs_BC * noise_BC.to(outputs_BC.device)).sum()
    if loss == "bce":
        given_BC = outputs_BC.detach()
        target_BC = (given_BC > 0).float()
        if generator is not None:
            chances_BC = given_BC.sigmoid().cpu()
            target_BC = torch.bernoulli(chances_BC, generator=generator).to(outputs_BC.device)
        return F.binary_cross_entropy_with_logits(outputs_BC, target_BC, reduction="sum")
    if generator is not None:
        chances_BC = outputs_BC.detach().softmax(-1).cpu()
        target_B = torch.multinomial(chances_BC, 1, generator=generator)[:, 0].to(outputs_BC.device)
    else:
        target_B = outputs_BC.argmax(-1) if labels_B is None else labels_B
    return F.cross_entropy(outputs_BC, target_B, reduction="sum")


def skip_labels(
    generator: torch.Generator,
    batches: Batches,
    classes: int,
    number: int,
    mine: Processes,
    at_once: int,
) -> None:
    """Draw and forget the labels of batches that other processes run before our `number`-th one.

    So each batch gets the labels it gets in a single process, where batches are all of one size
    but the last.
    """
    before = 0 if number == 0 else (number - 1) * mine.count + mine.rank + 1
    size = -(-batches.images // len(batches))
    for other in range(before, number * mine.count + mine.rank):
        count = min(size, batches.images - other * size)
        for start in range(0, count, at_once):
            chances = torch.ones(min(at_once, count - start), classes)
            torch.multinomial(chances, 1, generator=generator)
