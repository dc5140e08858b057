"""L2 norm of all weights of a unit: rows that read for it and columns that write from it.

Legend: D residual width, H heads, K query/key dims, V value dims, F hidden neurons.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.weights import AttentionWeights, MlpWeights


def attention_squares(weights: AttentionWeights) -> tuple[Tensor, Tensor]:
    """Squared norms of each query/key pair (H, K) and of each value/output pair (H, V)."""
    qk_HK = weights.q_HKD.square().sum(-1) + weights.k_HKD.square().sum(-1)
    vo_HV = weights.v_HVD.square().sum(-1) + weights.o_DHV.square().sum(0)
    return qk_HK, vo_HV


@criterion(
    "magnitude",
    title="Magnitude",
    source="group L2 norm: Li et al., ICLR 2017, arXiv 1608.08710, over coupled weights",
    needs={group: () for group in ("hidden", "qk", "vo", "heads", "branch", "width")},
)
def magnitude(question: Question) -> Tensor:
    """sqrt of the sum of squared weights; the root mean square over units for a branch.

    For a channel of the stream, all rows that write and all columns that read it.
    """
    weights = question.weights
    if question.group == "width":
        assert question.stream is not None
        members = [*question.stream.writers.values(), *question.stream.readers.values()]
        square_D = torch.stack([w_DF.double().square().sum(1) for w_DF in members]).sum(0)
        return square_D.sqrt()
    if isinstance(weights, MlpWeights):
        weights = weights.to(torch.float64)
        square_F = weights.w2_DF.square().sum(0)
        for reader_FD in weights.readers_FD:
            square_F = square_F + reader_FD.square().sum(1)
        return square_F.mean().sqrt() if question.group == "branch" else square_F.sqrt()
    assert isinstance(weights, AttentionWeights)
    qk_HK, vo_HV = attention_squares(weights.to(torch.float64))
    if question.group == "qk":
        return qk_HK.sqrt()
    if question.group == "vo":
        return vo_HV.sqrt()
    head_H = qk_HK.sum(1) + vo_HV.sum(1)
    return head_H.sqrt() if question.group == "heads" else head_H.mean().sqrt()
