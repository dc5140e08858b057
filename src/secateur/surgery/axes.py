"""The dense function in other axes: query/key and value dims turned so that few carry most.

Queries meet keys, and values the projection, without a nonlinearity between them, so for any
invertible T the dims q T, k T^-T and v T, W_o T^-T give the same outputs. In the principal axes
the last dims of each head carry least, and masks on single dims can remove what in the given axes
is spread over all of them. The axes are those of `secateur.surgery.rotate`; here nothing is cut.

Legend: D residual width, H heads, K query/key dims, V value dims per head, R turned dims.
"""

from dataclasses import replace

import torch
from torch import Tensor

from secateur.models.weights import AttentionWeights
from secateur.statistics import Sums
from secateur.statistics.moments import moments
from secateur.surgery.rotate import FLOOR, matrix_roots

RIDGE = 1e-6
"""Share of the mean variance added to each dim, so that dims that never vary can be turned too.

It is more where the smallest would stay below the `FLOOR` of the largest."""


def turn_query_key(weights: AttentionWeights, logits: Sums) -> AttentionWeights:
    """The same logits, dims of descending energy in them; `logits` are the `logit_moments`.

    q' = q G_q^-1/2 U with G_q^1/2 G_k^1/2 = U S V^T (`rotate.query_key_basis`), k' its inverse
    transpose, then queries and keys scaled to rows of equal norm.
    """
    root_q_HKK, inverse_q_HKK = matrix_roots(_regular(logits["q_gram"]))
    root_k_HKK, _ = matrix_roots(_regular(logits["k_gram"]))
    u_HKR = torch.linalg.svd(root_q_HKK @ root_k_HKK).U
    turn_q_HKR, turn_k_HKR = _balanced(
        inverse_q_HKK @ u_HKR, root_q_HKK @ u_HKR, weights.q_HKD.double(), weights.k_HKD.double()
    )
    return replace(
        weights,
        q_HKD=turn_q_HKR.mT @ weights.q_HKD.double(),
        k_HKD=turn_k_HKR.mT @ weights.k_HKD.double(),
        qb_HK=_turned(turn_q_HKR, weights.qb_HK),
        kb_HK=_turned(turn_k_HKR, weights.kb_HK),
    )


def turn_value(weights: AttentionWeights, context: Sums) -> AttentionWeights:
    """The same updates, value dims of descending energy; `context` are the `context_moments`.

    v' = v C^-1/2 V with W_o C^1/2 = U S V^T for each head's block of the covariance C of contexts.
    """
    heads, dims = weights.v_HVD.shape[:2]
    cov_HVHV = moments(context).cov_UU.reshape(heads, dims, heads, dims)
    cov_HVV = _regular(torch.stack([cov_HVHV[h, :, h] for h in range(heads)]))
    root_HVV, inverse_HVV = matrix_roots(cov_HVV)
    o_HDV = weights.o_DHV.double().transpose(0, 1)
    v_HVR = torch.linalg.svd(o_HDV @ root_HVV, full_matrices=True).Vh.mT
    turn_v_HVR, turn_o_HVR = _balanced(
        inverse_HVV @ v_HVR, root_HVV @ v_HVR, weights.v_HVD.double(), o_HDV.mT
    )
    return replace(
        weights,
        v_HVD=turn_v_HVR.mT @ weights.v_HVD.double(),
        vb_HV=_turned(turn_v_HVR, weights.vb_HV),
        o_DHV=(o_HDV @ turn_o_HVR).transpose(0, 1),
    )


def _regular(gram_HKK: Tensor) -> Tensor:
    gram_HKK = gram_HKK.double()
    mean_H = gram_HKK.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)
    # WHY: a dim below the floor has no inverse, and what it carries would be gone. Sums in single
    # precision may end below zero.
    values_HK = torch.linalg.eigvalsh((gram_HKK + gram_HKK.mT) / 2)
    ridge_H = torch.maximum(RIDGE * mean_H, 2 * FLOOR * values_HK[:, -1] - values_HK[:, 0])
    eye_KK = torch.eye(gram_HKK.shape[-1], dtype=torch.float64, device=gram_HKK.device)
    return gram_HKK + ridge_H[:, None, None] * eye_KK


def _balanced(
    one_HKR: Tensor, other_HKR: Tensor, rows_HKD: Tensor, others_HKD: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale a turn and its inverse transpose so that both sides' rows have equal norms."""
    norms_HR, other_norms_HR = (
        (turn_HKR.mT @ w_HKD).norm(dim=-1).clamp(min=1e-30)
        for turn_HKR, w_HKD in ((one_HKR, rows_HKD), (other_HKR, others_HKD))
    )
    scale_H1R = (other_norms_HR / norms_HR).sqrt()[:, None, :]
    return one_HKR * scale_H1R, other_HKR / scale_H1R


def _turned(turn_HKR: Tensor, bias_HK: Tensor | None) -> Tensor | None:
    return None if bias_HK is None else (turn_HKR.mT @ bias_HK.double()[..., None])[..., 0]
