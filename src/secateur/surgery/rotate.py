"""Reductions by rotation: the best rank-r subspace of a bilinear pair, folded into the weights.

Two linear maps that meet without a nonlinearity between them (queries with keys, values with the
output projection) may be re-expressed in any basis, so the best r dims are found by a singular
value decomposition instead of chosen among the present ones.

Legend: D residual width, H heads, K query/key dims, V value dims per head, R kept dims,
U all context dims (H * V).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-7
"""Eigenvalues below this share of the largest count as zero: they are rounding in fp32 sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryKeyBasis:
    """Full-rank encodes, best dims first: q' = q @ encode_q[..., :r], k' = k @ encode_k[..., :r].

    `spectrum_HK` holds the squared singular values; the mean squared error of the logits at rank
    r, in the metric of the Grams, is the sum of `spectrum_HK[:, r:]` (before the softmax scale).
    """

    encode_q_HKR: Tensor
    encode_k_HKR: Tensor
    spectrum_HK: Tensor


def query_key_basis(q_gram_HKK: Tensor, k_gram_HKK: Tensor) -> QueryKeyBasis:
    """Joint spectral reduction of queries and keys from their Grams (per token), fp64.

    Minimises E||q k^T - q' k'^T||^2 over rank-r pairs: with G_q^1/2 G_k^1/2 = U S V^T the optimum
    is q' = q G_q^-1/2 U_r S_r^1/2 and k' = k G_k^-1/2 V_r S_r^1/2 (Eckart-Young in the metric of
    the data; derived here for token-centred or attention-weighted keys).
    """
    root_q, inverse_q = matrix_roots(q_gram_HKK)
    root_k, inverse_k = matrix_roots(k_gram_HKK)
    u_HKR, s_HR, vt_HRK = torch.linalg.svd(root_q @ root_k)
    balance_HR = s_HR.sqrt()[:, None, :]
    return QueryKeyBasis(
        encode_q_HKR=inverse_q @ u_HKR * balance_HR,
        encode_k_HKR=inverse_k @ vt_HRK.transpose(1, 2) * balance_HR,
        spectrum_HK=s_HR.square(),
    )


def principal_basis(gram_DD: Tensor) -> Tensor:
    """Orthonormal eigenvectors of a Gram as columns (D, D), largest first, fp64."""
    gram_DD = gram_DD.double()
    vectors_DD: Tensor = torch.linalg.eigh((gram_DD + gram_DD.T) / 2).eigenvectors
    return vectors_DD.flip(1)


def matrix_roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of positive semi-definite matrices and its pseudo-inverse, fp64."""
    gram = gram.double()
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    top = values.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    real = values > FLOOR * top
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(real, 1 / root.clamp(min=1e-300), torch.zeros_like(root))
    root = torch.where(real, root, torch.zeros_like(root))
    return (vectors * root[..., None, :]) @ vectors.mT, (
        vectors * inverse[..., None, :]
    ) @ vectors.mT


def value_basis(
    cov_UU: Tensor, w_DU: Tensor, heads: int, size: int, *, rounds: int = 3
) -> tuple[Tensor, float]:
    """Encode (H, V, R) of each head's values, and the squared error that remains, fp64.

    Minimises E||W (c - mu) - sum_h D_h E_h^T (c_h - mu_h)||^2 over encodes E_h and decodes D_h of
    rank R (of the rank of W_h at most; where R is more, the other dims are free for a later refit),
    given the covariance of all context dims. Starts with each head alone, which is the
    SVD of W_h C_h^1/2, and then lets the heads take turns on what the others leave (reduced-rank
    regression, Izenman 1975; block coordinate descent, so the error never rises). `w_DU` may be
    whitened on the left by a root of an output metric.
    """
    w_DU, cov_UU = w_DU.double(), cov_UU.double()
    dims = cov_UU.shape[0] // heads
    blocks = [slice(h * dims, (h + 1) * dims) for h in range(heads)]
    roots = [matrix_roots(cov_UU[b, b]) for b in blocks]
    approx_DU = torch.zeros_like(w_DU)
    rank = min(size, w_DU.shape[0])
    encodes: list[Tensor] = [w_DU.new_empty(0)] * heads
    # WHY: the first round treats every head alone; only then is there something to share.
    for turn in range(rounds + 1):
        for h, block in enumerate(blocks):
            root_VV, inverse_VV = roots[h]
            if turn == 0:
                target_DV = w_DU[:, block] @ root_VV
            else:
                rest_DU = w_DU - approx_DU
                rest_DU[:, block] = w_DU[:, block]
                target_DV = rest_DU @ cov_UU[:, block] @ inverse_VV
            u_DR, s_R, vt_RV = torch.linalg.svd(target_DV, full_matrices=rank < size)
            encodes[h] = inverse_VV @ vt_RV[:size].mT
            approx_DU[:, block] = (u_DR[:, :rank] * s_R[:rank]) @ vt_RV[:rank] @ inverse_VV
        if turn == 0 and heads == 1:
            break
    error_DU = w_DU - approx_DU
    error = float(torch.einsum("du,uv,dv->", error_DU, cov_UU, error_DU))
    return torch.stack(encodes), max(error, 0.0)
