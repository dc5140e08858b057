"""How far a changed model's outputs are from the dense one's: nats, or angles without a classifier.

Legend: B or P images, C outputs (classes, or features of a model without a head).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OutputLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as loss(dense outputs, changed outputs, labels); sums over the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """`divergence`: mean KL(dense || changed) in nats; for a model without classes, mean
    1 - cos(dense features, changed features). `agreement`: share of images, 0…1, with the same
    top class; None without classes. `stderr`: standard error of the divergence over the images."""

    divergence: float
    agreement: float | None
    stderr: float = 0.0


def unit_of(num_classes: int) -> str:
    """The unit of a divergence."""
    return "nats" if num_classes else "1 − cosine"


def divergence(dense_BC: Tensor, changed_BC: Tensor) -> Tensor:
    """KL(dense || changed) of each image (B,) in nats, from logits, in their precision."""
    log_p_BC, log_q_BC = dense_BC.log_softmax(-1), changed_BC.log_softmax(-1)
    return F.kl_div(log_q_BC, log_p_BC, log_target=True, reduction="none").sum(-1)


def degradation(dense_PC: Tensor, changed_PC: Tensor, num_classes: int) -> Degradation:
    """Compare outputs, in fp32."""
    dense_PC, changed_PC = dense_PC.float(), changed_PC.float()
    if not num_classes:
        units = (F.normalize(x.flatten(1), dim=-1) for x in (dense_PC, changed_PC))
        cosine_P = torch.linalg.vecdot(*units)
        return Degradation(
            divergence=float((1 - cosine_P).mean().clamp(min=0)),
            agreement=None,
            stderr=_stderr(cosine_P),
        )
    same_P = dense_PC.argmax(-1) == changed_PC.argmax(-1)
    divergence_P = divergence(dense_PC, changed_PC)
    return Degradation(
        divergence=float(divergence_P.mean()),
        agreement=float(same_P.float().mean()),
        stderr=_stderr(divergence_P),
    )


def _stderr(values_P: Tensor) -> float:
    """Standard error of the mean over images."""
    return float(values_P.std(correction=0)) / math.sqrt(len(values_P))


def _divergence_sum(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    return divergence(dense_BC, changed_BC).sum()


def entropy_rise(dense_BC: Tensor, changed_BC: Tensor, labels_B: Tensor | None) -> Tensor:
    """Rise of the cross-entropy, in nats; the dense predictions stand for missing labels."""
    target_B = dense_BC.argmax(-1) if labels_B is None else labels_B
    after = F.cross_entropy(changed_BC, target_B, reduction="sum")
    return after - F.cross_entropy(dense_BC, target_B, reduction="sum")


def logit_angle(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    """Angle between the logits, as a share of pi."""
    cosine_B = F.cosine_similarity(dense_BC, changed_BC, dim=-1).clamp(-1, 1)
    return (cosine_B.arccos() / torch.pi).sum()


OUTPUT_LOSSES: dict[str, OutputLoss] = {
    "delta_kl": _divergence_sum,
    "delta_ce": entropy_rise,
    "delta_angle": logit_angle,
}
"""By the name of the criterion that reads it."""
