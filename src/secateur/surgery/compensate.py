"""Kept query/key dims take over what the removed ones gave to the attention logits.

With kept dims S, the bilinear form q_S A k_S^T nearest to the logits q k^T is, pooled over images
and heads apart,

    A = G_Q^-1 (Q_S^T Q)(K^T K_S) G_K^-1 = I + (G_Q^-1 C_Q)(C_K G_K^-1),

G the Grams of the kept dims, C those of kept with removed ones, keys centred over the tokens of
each image, since the softmax ignores their mean. A is not symmetric. Its singular value
decomposition A = R s T^T folds into queries (R s^1/2) and keys (T s^1/2), with their biases; the
softmax scale stays that of the dense model. In the manner of CORP, arXiv 2602.05243, whose public
code symmetrises A, (A + A^T) / 2, which is here a variant to compare with; this form is derived
here.

Ridges shrink A towards I by factors between 0 and 1 in the bases of the Grams, where the squared
error is a sum of parabolas; so it never exceeds that of the selection alone.

Legend: D residual width, H heads kept, K query/key dims, S kept of them, P removed.
"""

from dataclasses import replace

import torch
from torch import Tensor

from secateur.models.weights import AttentionWeights
from secateur.statistics import Sums
from secateur.surgery.moments import RIDGE, iterated_solve


def logit_map(
    q_gram_KK: Tensor, k_gram_KK: Tensor, kept_S: Tensor, owner: str, ridge: float = RIDGE
) -> Tensor:
    """A (S, S), fp64, of one head from its Grams of all dims (any common factor cancels)."""
    removed = torch.ones(q_gram_KK.shape[0], dtype=torch.bool, device=q_gram_KK.device)
    removed[kept_S] = False
    halves_SP = []
    for gram_KK in (q_gram_KK.double(), k_gram_KK.double()):
        gram_KK = (gram_KK + gram_KK.T) / 2
        gram_SK = gram_KK[kept_S]
        halves_SP.append(iterated_solve(gram_SK[:, kept_S], gram_SK[:, removed], ridge, owner))
    identity_SS = torch.eye(kept_S.numel(), dtype=torch.float64, device=q_gram_KK.device)
    map_SS: Tensor = identity_SS + halves_SP[0] @ halves_SP[1].T
    return map_SS


def compensate_logits(
    selected: AttentionWeights,
    sums: Sums,
    heads_H: Tensor,
    kept_HS: Tensor,
    owner: str,
    *,
    symmetric: bool = False,
) -> AttentionWeights:
    """`selected`, the weights of kept heads and dims, with each head's A folded in.

    `sums` are the `logit_moments` of all dense heads; `heads_H` and `kept_HS` say which heads and
    which of their dims were kept.
    """
    maps = [
        logit_map(sums["q_gram"][head], sums["k_gram"][head], kept_S, owner)
        for head, kept_S in zip(heads_H.tolist(), kept_HS, strict=True)
    ]
    map_HSS = torch.stack(maps)
    if symmetric:
        map_HSS = (map_HSS + map_HSS.mT) / 2
    r_HSS, s_HS, tt_HSS = torch.linalg.svd(map_HSS)
    root_HS1 = s_HS.sqrt()[..., None]
    into_q_HSS, into_k_HSS = root_HS1 * r_HSS.mT, root_HS1 * tt_HSS
    return replace(
        selected,
        q_HKD=into_q_HSS @ selected.q_HKD.double(),
        k_HKD=into_k_HSS @ selected.k_HKD.double(),
        qb_HK=_mixed(into_q_HSS, selected.qb_HK),
        kb_HK=_mixed(into_k_HSS, selected.kb_HK),
    )


def _mixed(mix_HSS: Tensor, bias_HS: Tensor | None) -> Tensor | None:
    return None if bias_HS is None else (mix_HSS @ bias_HS.double()[..., None])[..., 0]
