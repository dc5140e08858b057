"""How well each query/key dim points along the leading singular components of QK^T (SNP).

All follows from the Grams of queries and keys, so nothing of the size of the tokens squared is ever
formed. Kinds differ in what is decomposed: the scores of each image or of all images stacked, with
the prefix tokens or the patches only, keys as they are or centred over the tokens of an image.

Legend: B batch, N tokens, H heads, K query/key dims per head, J singular components.
"""

from functools import partial

import torch
from torch import Tensor

from secateur.evidence.kinds import Seen, Sums, add_, evidence_kind

NEGLIGIBLE = 1e-13
"""Singular values below this share of the largest are taken for zero."""
JITTER = 1e-14
"""Share of its mean diagonal that is added to a Gram without a Cholesky factor."""


def leading(dims: int) -> int:
    """SNP's gamma, the number of singular components that count: half the dims of a head.

    The paper does not state it. As many as dims are kept would be circular here, where scores
    come before sizes.
    """
    return max(1, dims // 2)


def alignment(q_NK: Tensor, k_NK: Tensor, gamma: int) -> Tensor:
    """sum over j <= gamma of |cos(s_j u_j v_j^T, q_i k_i^T)| for each dim i: (..., K), fp64.

    u, s, v are the singular value decomposition of q k^T (..., N, N). Source: SNP, ECCV 2024,
    arXiv 2404.11630, figure of the method.
    """
    cosine_JK, _ = components(*_grams(q_NK, k_NK))
    score_K: Tensor = cosine_JK[..., :gamma, :].sum(-2)
    return score_K


def components(q_gram_KK: Tensor, k_gram_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Each dim along each singular component j of q k^T, the largest first: two (..., J, K).

    |u_j.q_i| |v_j.k_i| / (|q_i| |k_i|), the cosine between the two matrices of rank one, 0 where
    q_i or k_i is zero; and s_j |u_j.q_i| |v_j.k_i|, their inner product.
    """
    cosine_KJ, strength_KJ = _ascending(q_gram_KK, k_gram_KK)
    return cosine_KJ.mT.flip(-2), strength_KJ.mT.flip(-2)


def _ascending(q_gram_KK: Tensor, k_gram_KK: Tensor) -> tuple[Tensor, Tensor]:
    """The same with dims first and the smallest component first: two (..., K, J).

    With L the Cholesky factor of q^T q, and A and s^2 the eigenvectors and eigenvalues of
    L^T (k^T k) L, the u_j.q_i are x = L A and the v_j.k_i are (k^T k) x / s.
    """
    l_KK = _factor(q_gram_KK)
    k_l_KK = k_gram_KK @ l_KK
    squares_J, a_KJ = torch.linalg.eigh(l_KK.mT @ k_l_KK)
    strength_KJ = (l_KK @ a_KJ).mul_(k_l_KK @ a_KJ).abs_()
    there_J = squares_J > NEGLIGIBLE**2 * squares_J[..., -1:]
    per_s_J = torch.where(there_J, squares_J.clamp(min=0).rsqrt(), 0.0)
    norms_K = (_diagonal(q_gram_KK) * _diagonal(k_gram_KK)).sqrt()
    per_norm_K = torch.where(norms_K > 0, 1 / norms_K, 0.0)
    cosine_KJ = (strength_KJ * per_s_J[..., None, :]).mul_(per_norm_K[..., None])
    return cosine_KJ, strength_KJ


def _factor(gram_KK: Tensor) -> Tensor:
    """The Cholesky factor; where there is none, that of a slightly larger matrix."""
    l_KK: Tensor
    l_KK, failed = torch.linalg.cholesky_ex(gram_KK)
    if not bool(failed.any()):
        return l_KK
    mean = _diagonal(gram_KK).mean(-1)[..., None, None].clamp(min=torch.finfo(torch.float64).tiny)
    eye_KK = torch.eye(gram_KK.shape[-1], dtype=gram_KK.dtype, device=gram_KK.device)
    eased = (failed > 0)[..., None, None] * mean * eye_KK
    for power in range(8):
        l_KK, failed = torch.linalg.cholesky_ex(gram_KK + JITTER * 10**power * eased)
        if not bool(failed.any()):
            break
    return l_KK


def _diagonal(gram_KK: Tensor) -> Tensor:
    return gram_KK.diagonal(dim1=-2, dim2=-1)


def _grams(q_NK: Tensor, k_NK: Tensor) -> tuple[Tensor, Tensor]:
    q_NK, k_NK = q_NK.double(), k_NK.double()
    return q_NK.mT @ q_NK, k_NK.mT @ k_NK


def _seen_grams(seen: Seen, *, patches: bool, centred: bool) -> tuple[Tensor, Tensor]:
    """Grams (B, H, K, K) of queries and keys of each image and head."""
    first = int(seen["prefix"]) if patches else 0
    q_BNHK, k_BNHK = seen["query"][:, first:], seen["key"][:, first:]
    if centred:
        k_BNHK = k_BNHK.double() - k_BNHK.double().mean(1, keepdim=True)
    return _grams(q_BNHK.transpose(1, 2), k_BNHK.transpose(1, 2))


def _add_scores_(sums: Sums, seen: Seen, *, patches: bool, centred: bool) -> None:
    """Sums over images of `cosine` and `strength` (H, J, K), and the number of images."""
    found_BHKJ = _ascending(*_seen_grams(seen, patches=patches, centred=centred))
    add_(sums, "images", torch.tensor(float(len(found_BHKJ[0])), dtype=torch.float64))
    for name, values_BHKJ in zip(("cosine", "strength"), found_BHKJ, strict=True):
        add_(sums, name, values_BHKJ.sum(0).mT.flip(-2))


def _add_grams_(sums: Sums, seen: Seen, *, patches: bool, centred: bool) -> None:
    """Sums over images of the Grams `q_gram` and `k_gram` (H, K, K): those of stacked images."""
    for name, gram_BHKK in zip(
        ("q_gram", "k_gram"), _seen_grams(seen, patches=patches, centred=centred), strict=True
    ):
        add_(sums, name, gram_BHKK.sum(0))


def snp_kind(aggregate: str, *, class_token: bool, centred: bool) -> str:
    """The name of the kind of evidence with these choices."""
    name = "snp_scores" if aggregate == "per_image" else "snp_grams"
    return name + ("_centred" if centred else "") + ("" if class_token else "_patches")


for _aggregate, _update in (("per_image", _add_scores_), ("stacked", _add_grams_)):
    for _token in (True, False):
        for _centred in (True, False):
            evidence_kind(
                snp_kind(_aggregate, class_token=_token, centred=_centred),
                scope="attention",
                sites=("query", "key"),
            )(partial(_update, patches=not _token, centred=_centred))
