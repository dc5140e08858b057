"""How well each query/key dim points along the leading singular components of QK^T (SNP).

All follows from the Grams of queries and keys, so nothing of the size of the tokens squared is ever
formed. Kinds differ in what is decomposed: the scores of each image or of all images stacked, with
the prefix tokens or the patches only, keys as they are or centred over the tokens of an image.

Of each image alone, only as many components are multiplied out as count: the first half, or all
where gamma is set.

Legend: B batch, N tokens, H heads, K query/key dims per head, J singular components.
"""

from functools import partial
from itertools import product

import torch
from torch import Tensor

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind

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
    cosine_JK, _ = components(_gram(q_NK), _gram(k_NK))
    score_K: Tensor = cosine_JK[..., :gamma, :].sum(-2)
    return score_K


def components(q_gram_KK: Tensor, k_gram_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Each dim along each singular component j of q k^T, the largest first: two (..., J, K).

    |u_j.q_i| |v_j.k_i| / (|q_i| |k_i|), the cosine between the two matrices of rank one, 0 where
    q_i or k_i is zero; and s_j |u_j.q_i| |v_j.k_i|, their inner product.
    """
    cosine_KJ, strength_KJ = _ascending(q_gram_KK, k_gram_KK, q_gram_KK.shape[-1])
    return cosine_KJ.mT.flip(-2), strength_KJ.mT.flip(-2)


def _ascending(q_gram_KK: Tensor, k_gram_KK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest with dims first and the smallest of them first: two (..., K, J).

    With L the Cholesky factor of q^T q, and A and s^2 the eigenvectors and eigenvalues of
    L^T (k^T k) L, the u_j.q_i are x = L A and the v_j.k_i are (k^T k) x / s.
    """
    l_KK = _factor(q_gram_KK)
    k_l_KK = k_gram_KK @ l_KK
    squares_J, a_KJ = torch.linalg.eigh(l_KK.mT @ k_l_KK)
    squares_J, a_KJ = squares_J[..., -count:], a_KJ[..., -count:]
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


def _gram(x_NK: Tensor) -> Tensor:
    """x^T x (..., K, K) in fp64."""
    x_NK = x_NK.double()
    return x_NK.mT @ x_NK


def _seen_grams(seen: Seen, *, patches: bool, centred: bool) -> tuple[Tensor, Tensor]:
    """Grams (B, H, K, K) of queries and keys of each image and head."""
    first = int(seen["prefix"]) if patches else 0
    q_BHNK, k_BHNK = (_rows(seen[site][:, first:]) for site in ("query", "key"))
    if centred:
        k_BHNK -= k_BHNK.mean(2, keepdim=True)
    return _gram(q_BHNK), _gram(k_BHNK)


def _rows(x_BNHK: Tensor) -> Tensor:
    """An fp64 copy (B, H, N, K) with the rows of each head side by side.

    `double()` alone would keep the order in memory, and the product of matrices copy once more.
    """
    x_BHNK = x_BNHK.transpose(1, 2)
    rows_BHNK = torch.empty(x_BHNK.shape, dtype=torch.float64, device=x_BHNK.device)
    return rows_BHNK.copy_(x_BHNK)


def _add_scores_(
    sums: Sums, seen: Seen, *, patches: bool, centred: bool, every: bool = True
) -> None:
    """Sums over images of `cosine` and `strength` (H, J, K), and the number of images.

    Of `every` component, or of those that count unless gamma is set.
    """
    dims = seen["query"].shape[-1]
    count = dims if every else leading(dims)
    found_BHKJ = _ascending(*_seen_grams(seen, patches=patches, centred=centred), count)
    add_(sums, "images", torch.tensor(float(len(found_BHKJ[0])), dtype=torch.float64))
    for name, values_BHKJ in zip(("cosine", "strength"), found_BHKJ, strict=True):
        add_(sums, name, values_BHKJ.sum(0).mT.flip(-2))


def _add_grams_(sums: Sums, seen: Seen, *, patches: bool, centred: bool) -> None:
    """Sums over images of the Grams `q_gram` and `k_gram` (H, K, K): those of stacked images."""
    for name, gram_BHKK in zip(
        ("q_gram", "k_gram"), _seen_grams(seen, patches=patches, centred=centred), strict=True
    ):
        add_(sums, name, gram_BHKK.sum(0))


def snp_kind(aggregate: str, *, class_token: bool, centred: bool, every: bool) -> str:
    """The name of the kind with these choices; `every` component or the first half."""
    name = {"per_image": "snp_scores", "stacked": "snp_grams"}[aggregate]
    if aggregate == "per_image" and every:
        name += "_every"
    return name + ("_centred" if centred else "") + ("" if class_token else "_patches")


def _register(*, class_token: bool, centred: bool) -> None:
    """One kind for each way to aggregate, of these tokens and keys."""
    patches = not class_token
    name = partial(snp_kind, class_token=class_token, centred=centred)
    file = partial(statistics_kind, scope="attention", sites=("query", "key"))
    for every in (True, False):
        file(name("per_image", every=every))(
            partial(_add_scores_, patches=patches, centred=centred, every=every)
        )
    file(name("stacked", every=True))(partial(_add_grams_, patches=patches, centred=centred))


for _class_token, _centred in product((True, False), repeat=2):
    _register(class_token=_class_token, centred=_centred)
