"""Units far from the geometric median of their kind: near it, others can stand in for them.

Legend: D residual width, H heads, K query/key dims, V value dims, F hidden neurons, U rows.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.weights import AttentionWeights, MlpWeights


def distances(rows_UD: Tensor) -> Tensor:
    """sum over all rows l of ||row - row l||: (..., U), fp64."""
    rows_UD = rows_UD.double()
    # WHY not by products: the difference of like rows would drown in rounding.
    between_UU = torch.cdist(rows_UD, rows_UD, compute_mode="donot_use_mm_for_euclid_dist")
    return between_UU.sum(-1)


@criterion(
    "geometric_median",
    title="Distance from the geometric median",
    source="FPGM, CVPR 2019, arXiv 1811.00250",
    needs={"qk": (), "vo": (), "hidden": ()},
)
def geometric_median(question: Question) -> Tensor:
    """Sum of distances to the weight rows of all units of the layer that could stand in.

    Rows are what a unit reads with: those of fc1 (and gate) for neurons, of W_v over all heads
    for value dims, of W_q and W_k end to end within a head for query/key dims.
    """
    weights = question.weights
    if isinstance(weights, MlpWeights):
        return distances(torch.cat(weights.readers_FD, dim=1))
    assert isinstance(weights, AttentionWeights)
    if question.group == "qk":
        return distances(torch.cat([weights.q_HKD, weights.k_HKD], dim=2))
    return distances(weights.v_HVD.flatten(0, 1)).view(weights.v_HVD.shape[:2])
