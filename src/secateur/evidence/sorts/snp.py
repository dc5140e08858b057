"""How well each query/key dim points along the leading singular components of QK^T (SNP).

Legend: B batch, N tokens, H heads, K query/key dims per head, C = min(N, K) core dims.
"""

import torch
from torch import Tensor

from secateur.evidence.kinds import Seen, Sums, add_, evidence_kind


def leading(dims: int) -> int:
    """SNP's gamma, the number of singular components that count: half the dims of a head.

    The paper does not state it. As many as dims are kept would be circular here, where scores
    come before sizes.
    """
    return max(1, dims // 2)


def alignment(q_NK: Tensor, k_NK: Tensor, gamma: int) -> Tensor:
    """sum over j <= gamma of |cos(s_j u_j v_j^T, q_i k_i^T)| for each dim i: (..., K), fp64.

    u, s, v are the singular value decomposition of q k^T (..., N, N), which is never formed: with
    q = A R and k = B T (QR), it is that of the core R T^T (C, C), rotated by A and B. Both
    matrices have rank one, so the cosine is |u_j.q_i| |v_j.k_i| / (|q_i| |k_i|); it is 0 where
    q_i or k_i is zero. Source: SNP, ECCV 2024, arXiv 2404.11630, figure of the method.
    """
    q_NK, k_NK = q_NK.double(), k_NK.double()
    r_q_CK = torch.linalg.qr(q_NK, mode="r").R
    r_k_CK = torch.linalg.qr(k_NK, mode="r").R
    u_CC, _, vt_CC = torch.linalg.svd(r_q_CK @ r_k_CK.mT)
    # WHY: u_j.q_i = (A u'_j).(A R_i) = u'_j.R_i, so the long factors A and B are not needed.
    along_q_GK = (u_CC.mT @ r_q_CK)[..., :gamma, :].abs()
    along_k_GK = (vt_CC @ r_k_CK)[..., :gamma, :].abs()
    norms_K = q_NK.norm(dim=-2) * k_NK.norm(dim=-2)
    sum_K = (along_q_GK * along_k_GK).sum(-2)
    return torch.where(norms_K > 0, sum_K / norms_K, torch.zeros_like(sum_K))


@evidence_kind("snp_scores", scope="attention", sites=("query", "key"))
def snp_scores(sums: Sums, seen: Seen) -> None:
    """Sum over images of the alignment of each query/key dim (H, K), and the number of images.

    Queries and keys are taken as they are: the published criterion does not centre keys.
    """
    q_BHNK, k_BHNK = seen["query"].transpose(1, 2), seen["key"].transpose(1, 2)
    score_BHK = alignment(q_BHNK, k_BHNK, leading(q_BHNK.shape[-1]))
    add_(sums, "images", torch.tensor(float(score_BHK.shape[0]), dtype=torch.float64))
    add_(sums, "score", score_BHK.sum(0))
