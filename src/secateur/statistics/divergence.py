"""How far the outputs of a changed model are from those of the dense one: the one measure of it.

Which loss fits depends on the outputs: a divergence between distributions for classes, squared
error for a number, angles for features. Legend: B or P images, N tokens, C outputs (classes,
numbers or features), T output tokens of models that do not pool.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import UserError
from secateur.registry import unknown

LossName = Literal["kl", "mse", "bce", "cosine"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
UNITS: dict[LossName, str] = {
    "kl": "nats",
    "mse": "of the variance",
    "bce": "nats",
    "cosine": "1 − cosine",
}
TINY = 1e-12
OutputLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as loss(dense outputs, changed outputs, labels); sums over the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """`divergence`: mean over images of the loss between dense and changed outputs, in its unit
    (see `per_image`; squared error as a share of the variance of the dense outputs).
    `agreement`: share of images, 0…1, with the same top class, or for `bce` of outputs on the same
    side of zero; None without classes. `stderr`: standard error of the divergence over images."""

    divergence: float
    agreement: float | None
    stderr: float = 0.0


def loss_for(outputs: int, named: str | None = None, *, multi_label: bool = False) -> LossName:
    """The loss that is `named`, else the one that fits a head of that many outputs.

    Unless named: `cosine` for features (no outputs of a head), `mse` for one output, `bce` where
    an image may have several labels, `kl` for classes. UserError for an unknown name, and for a
    loss that cannot see such outputs change.
    """
    if named is None:
        return (
            "cosine" if not outputs else "mse" if outputs == 1 else "bce" if multi_label else "kl"
        )
    found = next((loss for loss in LOSSES if loss == named), None)
    if found is None:
        raise UserError(unknown("loss", named, list(LOSSES)))
    if outputs == 1 and found in ("kl", "cosine"):
        why = (
            "the softmax of one output is always 1" if found == "kl" else "one number has no angle"
        )
        raise UserError(
            f"loss '{found}' is 0 whatever is removed from a model of one output, since {why}; "
            "take mse, or bce where the output is the logit of a probability."
        )
    if not outputs and found in ("kl", "bce"):
        raise UserError(
            f"loss '{found}' compares class probabilities, but the model has no classifier; take "
            "cosine or mse."
        )
    return found


def blind(loss: LossName) -> UserError:
    """What is wrong where outputs change, but the loss of every candidate is 0."""
    return UserError(
        f"every candidate changes the outputs, but none has a loss above 0 ('{loss}'), so nothing "
        f"could be chosen by it; name another loss ({', '.join(LOSSES)})."
    )


def unit_of(num_classes: int, loss: LossName | None = None) -> str:
    """The unit of a divergence, that of the default loss unless one is given."""
    return UNITS[loss or loss_for(num_classes)]


def divergence(dense_BC: Tensor, changed_BC: Tensor) -> Tensor:
    """KL(dense || changed) of each image (B,) in nats, from logits, in their precision."""
    log_p_BC, log_q_BC = dense_BC.log_softmax(-1), changed_BC.log_softmax(-1)
    return F.kl_div(log_q_BC, log_p_BC, log_target=True, reduction="none").sum(-1)


def per_image(dense_BC: Tensor, changed_BC: Tensor, loss: LossName) -> Tensor:
    """The loss of each image (B,), from outputs (B, C) or (B, T, C), whose tokens are averaged.

    `kl`: KL(dense || changed) of the softmax, in nats. `bce`: the sum over outputs of KL(dense ||
    changed) of the sigmoid, in nats. `cosine`: 1 - cos(dense, changed). `mse`: squared error,
    summed over outputs, in the units of the outputs; `spread` normalises it.
    """
    if loss == "kl":
        found = divergence(dense_BC, changed_BC)
    elif loss == "cosine":
        units = (F.normalize(x, dim=-1) for x in (dense_BC, changed_BC))
        found = 1 - torch.linalg.vecdot(*units)
    elif loss == "mse":
        found = (dense_BC - changed_BC).square().sum(-1)
    else:
        found = _binary(dense_BC, changed_BC)
    return _by_image(found)


def _binary(dense_BC: Tensor, changed_BC: Tensor) -> Tensor:
    """Sum over outputs of KL between Bernoulli distributions given by logits."""
    p_BC = dense_BC.sigmoid()
    kept = p_BC * (F.logsigmoid(dense_BC) - F.logsigmoid(changed_BC))
    rest = (1 - p_BC) * (F.logsigmoid(-dense_BC) - F.logsigmoid(-changed_BC))
    return (kept + rest).sum(-1)


def _by_image(values: Tensor) -> Tensor:
    """Means over everything but images."""
    return values if values.ndim < 2 else values.flatten(1).mean(1)


def spread(dense_PC: Tensor, loss: LossName) -> float:
    """What a mean of `per_image` is divided by: for `mse` the variance of the dense outputs over
    images, summed over outputs; 1 for the other losses.

    Outputs that are the same for all images, such as those of a single one, give their mean square.
    """
    if loss != "mse":
        return 1.0
    dense_PC = dense_PC.double()
    variance = float((dense_PC - dense_PC.mean(0)).square().sum(-1).mean())
    square = float(dense_PC.square().sum(-1).mean())
    return variance if variance > TINY * square else square or 1.0


def degradation(
    dense_PC: Tensor, changed_PC: Tensor, num_classes: int, loss: LossName | None = None
) -> Degradation:
    """Compare outputs, in fp32; by the default loss of so many classes unless one is given."""
    loss = loss or loss_for(num_classes)
    dense_PC, changed_PC = dense_PC.float(), changed_PC.float()
    loss_P, scale = per_image(dense_PC, changed_PC, loss), spread(dense_PC, loss)
    mean = float(loss_P.mean()) / scale
    if loss == "cosine":
        mean = max(mean, 0.0)
    return Degradation(
        divergence=mean,
        agreement=_agreement(dense_PC, changed_PC, num_classes, loss),
        stderr=_stderr(loss_P) / scale,
    )


def _stderr(values_P: Tensor) -> float:
    """Standard error of the mean over images."""
    return float(values_P.std(correction=0)) / math.sqrt(len(values_P))


def _agreement(
    dense_PC: Tensor, changed_PC: Tensor, num_classes: int, loss: LossName
) -> float | None:
    if loss == "bce":
        return float(((dense_PC > 0) == (changed_PC > 0)).float().mean())
    if num_classes < 2:
        return None
    return float((dense_PC.argmax(-1) == changed_PC.argmax(-1)).float().mean())


def _loss_sum(
    dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None, *, loss: LossName
) -> Tensor:
    return per_image(dense_BC, changed_BC, loss).sum()


def entropy_rise(dense_BC: Tensor, changed_BC: Tensor, labels_B: Tensor | None) -> Tensor:
    """Rise of the cross-entropy, in nats; the dense predictions stand for missing labels."""
    if dense_BC.ndim > 2:
        dense_BC, changed_BC, labels_B = dense_BC.flatten(0, -2), changed_BC.flatten(0, -2), None
    target_B = dense_BC.argmax(-1) if labels_B is None else labels_B
    after = F.cross_entropy(changed_BC, target_B, reduction="sum")
    return after - F.cross_entropy(dense_BC, target_B, reduction="sum")


def binary_entropy_rise(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    """Rise of the binary cross-entropy with the dense decisions, summed over outputs, in nats."""
    target_BC = (dense_BC > 0).to(dense_BC)
    after = F.binary_cross_entropy_with_logits(changed_BC, target_BC, reduction="sum")
    return after - F.binary_cross_entropy_with_logits(dense_BC, target_BC, reduction="sum")


def logit_angle(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    """Angle between the logits, as a share of pi."""
    cosine_B = F.cosine_similarity(dense_BC, changed_BC, dim=-1).clamp(-1, 1)
    return _by_image(cosine_B.arccos() / torch.pi).sum()


def output_losses(loss: LossName) -> dict[str, OutputLoss]:
    """What can be measured of outputs under a loss, by the name of the criterion that reads it.

    `delta_kl` is the loss itself, squared errors not yet normalised.
    """
    found: dict[str, OutputLoss] = {
        "delta_kl": partial(_loss_sum, loss=loss),
        "delta_angle": logit_angle,
    }
    if loss in ("kl", "bce"):
        found["delta_ce"] = entropy_rise if loss == "kl" else binary_entropy_rise
    return found


def check_output_criterion(name: str, outputs: int, loss: LossName) -> None:
    """UserError for a criterion of output changes that says nothing about such outputs."""
    why = None
    if name == "delta_ce" and loss not in ("kl", "bce"):
        why = f"compares classes, but the outputs are compared by '{loss}'"
    if name == "delta_angle" and outputs == 1:
        why = "compares the directions of outputs, but the model has one output"
    if why is not None:
        raise UserError(f"criterion '{name}' {why}; take a preset that asks delta_kl, or spectral.")
