"""SNP: query/key dims that span the attention scores; values and neurons unlike all others.

Legend: D residual width, H heads, K query/key dims, V value dims, F hidden neurons, U rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.anatomy.stream import StreamWeights
from secateur.anatomy.weights import AttentionWeights, MlpWeights
from secateur.criteria.registry import Question, criterion


def dissimilarity(rows_UD: Tensor) -> Tensor:
    """sum over all rows l of 1 - |cos(row, row l)|: (U,), fp64; 0 for a row of zeros."""
    rows_UD = rows_UD.double()
    unit_UD = F.normalize(rows_UD, dim=1, eps=torch.finfo(torch.float64).tiny)
    total_U = (1 - (unit_UD @ unit_UD.T).abs().clamp(max=1)).sum(1)
    return torch.where(rows_UD.any(1), total_U, torch.zeros_like(total_U))


def shared(stream: StreamWeights) -> Tensor:
    """Dissimilarity of a channel's rows in every member that writes it: (D,), fp64, sum 1.

    Each member's scores are divided by their sum, then averaged over members, as the options
    `TSS_NORM` and `AVERAGE` of the authors' tool say.
    """
    members = []
    for rows_DF in stream.writers.values():
        score_D = dissimilarity(rows_DF)
        members.append(score_D / score_D.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return torch.stack(members).mean(0)


@criterion(
    "snp",
    title="Similarity-based neuron pruning (SNP)",
    source="SNP, ECCV 2024, arXiv 2404.11630",
    needs={"qk": ("snp_scores",), "vo": (), "hidden": (), "width": ()},
)
def snp(question: Question) -> Tensor:
    """Mean over images of the alignment with QK^T; total dissimilarity of weight rows else.

    Value rows are compared with those of all heads, rows of fc1 with all rows of fc1; for gated
    MLPs a neuron's rows are joined end to end. For channels of the stream see `shared`.
    """
    if question.stream is not None:
        return shared(question.stream)
    if question.group == "qk":
        sums = question.sums["snp_scores"]
        return sums["score"] / sums["images"]
    weights = question.weights
    if isinstance(weights, MlpWeights):
        return dissimilarity(torch.cat(weights.readers_FD, dim=1))
    assert isinstance(weights, AttentionWeights)
    return dissimilarity(weights.v_HVD.flatten(0, 1)).view(weights.v_HVD.shape[:2])
