"""Gradients of the loss with respect to the weights of every branch, image by image.

Legend: H heads, K query/key dims, V value dims, F hidden neurons, D residual width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from secateur.data.batches import Batch
from secateur.models.caches import copy_of, forget_cached_
from secateur.models.family import family_of
from secateur.models.outputs import outputs_of
from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.statistics.backward import output_loss
from secateur.statistics.divergence import LossName
from secateur.statistics.registry import Sums, add_, statistics_trial


@statistics_trial("weight_gradients")
def weight_gradients(
    sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch, loss: LossName
) -> None:
    """Sums over images of each weight's gradient (`NAME`) and of its square (`NAME_square`).

    The loss is the cross-entropy of one image with its label, or with the model's own prediction
    where there is none; see `secateur.statistics.backward.output_loss` for other outputs. Names and
    shapes are those of `parts`.
    """
    family = family_of(model)
    anatomy = family.read(model)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    # WHY: written into a copy of the model, gradients are seen in canonical layout like weights.
    shadow = copy_of(model)
    targets = list(shadow.parameters())
    for number in range(len(batch.images_BCHW)):
        label = None if batch.labels_B is None else batch.labels_B[number : number + 1]
        found = _gradients(model, parameters, batch.images_BCHW[number : number + 1], label, loss)
        for target, gradient in zip(targets, found, strict=True):
            target.copy_(torch.zeros_like(target) if gradient is None else gradient)
        for branch in anatomy.branches:
            sums = sums_of(branch.id)
            add_(sums, "images", torch.tensor(1.0, dtype=torch.float64))
            for name, gradient in parts(family.weights(shadow, branch)).items():
                add_(sums, name, gradient)
                add_(sums, f"{name}_square", gradient.float().square())


def parts(weights: BranchWeights) -> dict[str, Tensor]:
    """The weight matrices of a branch by name, the dims of their units first.

    `q`, `k` (H, K, D), `v`, `o` (H, V, D); `in0`, `in1` … (F, D) and `out` (F, D).
    """
    if isinstance(weights, AttentionWeights):
        o_HVD = weights.o_DHV.permute(1, 2, 0)
        return {"q": weights.q_HKD, "k": weights.k_HKD, "v": weights.v_HVD, "o": o_HVD}
    found = {f"in{i}": reader_FD for i, reader_FD in enumerate(weights.readers_FD)}
    return found | {"out": weights.w2_DF.T}


def _gradients(
    model: nn.Module,
    parameters: list[nn.Parameter],
    image_1CHW: Tensor,
    label: Tensor | None,
    loss: LossName,
) -> tuple[Tensor | None, ...]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    # WHY: what is cached belongs to the graph of the image before, which is gone.
    forget_cached_(model)
    with torch.enable_grad():
        value = output_loss(outputs_of(model(image_1CHW)).float(), label, None, loss)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(value, parameters, allow_unused=True)
    forget_cached_(model)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return found
