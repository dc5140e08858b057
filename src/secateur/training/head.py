"""The classifier solved for anew in closed form, so that outputs are the teacher's.

Legend: B batch, C classes, F features before the classifier and a one, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.errors import UserError
from secateur.statistics.moments import moments
from secateur.statistics.registry import Sums, add_
from secateur.surgery.solve import Choice, least_squares
from secateur.training.distillation.teacher import Teacher, logits_of
from secateur.training.images.held_out import HeldOut
from secateur.training.images.sampler import Items

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the mean of the Gram's diagonal."""


def refit_head_(
    model: nn.Module, teacher: Teacher, items: Items, judge: HeldOut, batch_size: int = 64
) -> float | None:
    """Solve anew for the classifier so that the model gives the teacher's logits.

    Least squares over the images' features f before the classifier W, b with a ridge ρ towards
    the present one: min over Δ of mean |(W + Δ) [f; 1] - z_teacher|² + ρ |Δ|². Of several ρ, and
    the present classifier, the one that the judge prefers is kept; returns ρ relative to the mean
    of the Gram's diagonal, None where the present one is best.
    """
    head = classifier_of(model, items[0][0] if not isinstance(items[0], Tensor) else items[0])
    known = moments(_head_sums(model, head, teacher, items, batch_size), centred=False)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    best, best_ridge = _value(judge, model), None
    kept = weight, bias
    for ridge in RIDGES:
        change_CF = least_squares(known, "the classifier", Choice(ridge=ridge)).w_DS
        with torch.no_grad():
            head.weight.copy_(weight + change_CF[:, :-1].to(weight))
            head.bias.copy_(bias + change_CF[:, -1].to(bias))
        if (value := _value(judge, model)) < best:
            best, best_ridge = value, ridge
            kept = head.weight.detach().clone(), head.bias.detach().clone()
    with torch.no_grad():
        head.weight.copy_(kept[0])
        head.bias.copy_(kept[1])
    return best_ridge


@torch.no_grad()
def _value(judge: HeldOut, model: nn.Module) -> float:
    total, count = next(iter(judge(model, 0, 1).values()))
    return total / count


@torch.no_grad()
def _head_sums(
    model: nn.Module, head: nn.Linear, teacher: Teacher, items: Items, batch_size: int
) -> Sums:
    """`count`, `gram` of f̃ = [f; 1] and `target_cross`, f̃ (z_teacher - z)ᵀ; in fp64."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    device, dtype = head.weight.device, head.weight.dtype
    sums: Sums = {}
    try:
        for batch in DataLoader(items, batch_size):  # type: ignore[arg-type]
            images_BCHW = (batch if isinstance(batch, Tensor) else batch[0]).to(device, dtype)
            seen.clear()
            logits_BC = logits_of(model(images_BCHW))
            lack_BC = (teacher.logits(images_BCHW) - logits_BC).double()
            f_BF = F.pad(seen[0].double(), (0, 1), value=1.0)
            add_(sums, "count", torch.tensor(float(len(f_BF)), dtype=torch.float64))
            add_(sums, "gram", f_BF.T @ f_BF)
            add_(sums, "target_cross", (f_BF.T @ lack_BC)[None])
    finally:
        handle.remove()
    return sums


@torch.no_grad()
def classifier_of(model: nn.Module, image_CHW: Tensor) -> nn.Linear:
    """The linear layer whose output is the model's; UserError where there is none with a bias."""
    outputs: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, out: outputs.append((m, out)))
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.bias is not None
    ]
    try:
        like = next(model.parameters())
        images_BCHW = image_CHW[None].to(like.device, like.dtype)
        logits_BC = logits_of(model(images_BCHW))
    finally:
        for handle in handles:
            handle.remove()
    for module, out in reversed(outputs):
        if out.shape == logits_BC.shape and torch.equal(out, logits_BC):
            return module
    raise UserError(
        "the classifier cannot be solved for: no linear layer with a bias gives the model's "
        "outputs; leave refit_head out."
    )
