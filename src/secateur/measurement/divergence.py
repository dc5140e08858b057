"""How far a changed model's output is from the dense one's: nats, or angles without a classifier.

Legend: P images, C outputs (classes, or features of a model without a head).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """`divergence`: mean KL(dense || changed) in nats; for a model without classes, mean
    1 - cos(dense features, changed features). `agreement`: share of images, 0…1, with the same
    top class; None without classes."""

    divergence: float
    agreement: float | None


def unit_of(num_classes: int) -> str:
    """The unit of a divergence."""
    return "nats" if num_classes else "1 − cosine"


def settled(output_PC: Tensor, num_classes: int) -> Tensor:
    """Outputs in the form in which they are compared: log-probabilities, or unit features."""
    output_PC = output_PC.float()
    if num_classes:
        return output_PC.log_softmax(-1)
    return F.normalize(output_PC.flatten(1), dim=-1)


def damage(dense_PC: Tensor, changed_PC: Tensor, num_classes: int) -> Damage:
    """Compare settled outputs."""
    if not num_classes:
        cosine_P = (dense_PC * changed_PC).sum(-1)
        return Damage(divergence=float((1 - cosine_P).mean().clamp(min=0)), agreement=None)
    kl = F.kl_div(changed_PC, dense_PC, log_target=True, reduction="batchmean")
    same_P = dense_PC.argmax(-1) == changed_PC.argmax(-1)
    return Damage(divergence=float(kl), agreement=float(same_P.float().mean()))
