"""How alike the heads of a layer are in what they carry.

Legend: H heads, V value dims per head, U all context dims (H * V).
"""

import torch
from torch import Tensor

from secateur.statistics import Sums
from secateur.statistics.moments import moments


def head_similarity(context_sums: Sums, heads: int) -> Tensor:
    """Linear CKA between the contexts of each two heads of a layer: (H, H), fp64, 0…1.

    ||C_hg||_F^2 / (||C_hh||_F ||C_gg||_F) with the blocks of the covariance of all context dims
    (Kornblith et al., ICML 2019, arXiv 1905.00414, feature-space form). It does not change under
    rotations inside a head. Tokens number thousands and dims tens, so the bias that calls for an
    unbiased estimator between depths is small here. 0 for a head that carries nothing.
    """
    cov_UU = moments(context_sums).cov_UU
    dims = cov_UU.shape[0] // heads
    cross_HH = cov_UU.square().view(heads, dims, heads, dims).sum((1, 3))
    own_H = cross_HH.diagonal().sqrt()
    scale_HH = own_H[:, None] * own_H[None, :]
    return torch.where(
        scale_HH > 0, cross_HH / scale_HH.clamp(min=1e-300), torch.zeros_like(cross_HH)
    )
