"""Corrections in closed form of what reads units that were partly removed.

A writer computes y = W x + b from units x. With the kept units S and the removed ones P:

- `none`: y = W_S x_S + b.
- `mean`: b + W_P mu_P: removed units are replaced by their mean (VBP, arXiv 2507.12988; FLAP,
  AAAI 2024, which overwrites the bias where we add).
- `least_squares`: what the removed units give, W_P x_P, is fitted by ridge regression on x_S,
  iterated once, and added: W_S + W_P B with B = C_PS (C_SS + r I)^-1, and b + W_P (mu_P - B mu_S)
  (CORP, arXiv 2602.05243; equal to the refit of OBS-type methods).
- `least_squares_symmetric`: the same for writers; for attention logits the symmetrised variant.

Attention logits: with kept query/key dims S, the bilinear form q_S A k_S^T nearest to the logits
q k^T is, pooled over images and heads apart,

    A = G_Q^-1 (Q_S^T Q)(K^T K_S) G_K^-1 = I + (G_Q^-1 C_Q)(C_K G_K^-1),

G the Grams of the kept dims, C those of kept with removed ones, keys centred over the tokens of
each image, since the softmax ignores their mean. A is not symmetric. Its singular value
decomposition A = R s T^T folds into queries (R s^1/2) and keys (T s^1/2), with their biases; the
softmax scale stays that of the dense model. In the manner of CORP, whose public code symmetrises
A, (A + A^T) / 2, which is here a variant to compare with; this form is derived here. Ridges shrink
A towards I by factors between 0 and 1 in the bases of the Grams, where the squared error is a sum
of parabolas; so it never exceeds that of the selection alone.

Legend: D residual width, U units before, S units kept, P units removed, H heads kept, K query/key
dims.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.models.weights import AttentionWeights
from secateur.statistics import Sums
from secateur.statistics.moments import Moments
from secateur.surgery.solve import RIDGE, Choice, LinearMap, encoded, least_squares, ridge_solve

Repair = Literal["none", "mean", "least_squares", "least_squares_symmetric"]
REPAIRS: tuple[str, ...] = get_args(Repair)
SOLVED = ("least_squares", "least_squares_symmetric")
"""Those that solve for what the survivors take over."""


def repaired_writer(
    w_DU: Tensor,
    b_D: Tensor | None,
    kept_S: Tensor,
    moments: Moments | None,
    repair: Repair,
    owner: str,
    ridge: float = RIDGE,
) -> tuple[Tensor, Tensor | None]:
    """The writer of the kept units (indices `kept_S`): weights (D, S) and bias (D,), fp64.

    A bias appears where the host has none and there is a constant to carry.
    """
    w_DU = w_DU.double()
    bias_D = None if b_D is None else b_D.double()
    w_DS = w_DU[:, kept_S]
    if repair == "none" or kept_S.numel() == w_DU.shape[1]:
        return w_DS, bias_D
    if moments is None:
        raise UserError(
            f"{owner}: repair '{repair}' needs evidence of what the units give; observe the uncut "
            "model with the kinds in repair_needs(), or use repair 'none'."
        )
    if repair in SOLVED:
        found = taken_over(w_DU, kept_S, moments, owner, ridge)
        w_DS, constant_D = found.w_DS, found.b_D
    else:
        constant_D = _without(w_DU, kept_S) @ moments.mean_U
    return w_DS, constant_D if bias_D is None else bias_D + constant_D


def taken_over(
    w_XU: Tensor, kept_S: Tensor, known: Moments, owner: str, ridge: float = RIDGE
) -> LinearMap:
    """The map of kept units that gives best what `w_XU` gives from all of them: (X, S) and (X,)."""
    # WHY: what is lost is fitted, not the whole, whose larger numbers would leave more rounding.
    problem = encoded(known, kept_S, _without(w_XU, kept_S))
    found = least_squares(problem, owner, Choice(ridge=ridge), steps=2)
    return LinearMap(w_XU[:, kept_S] + found.w_DS, found.b_D)


def _without(w_XU: Tensor, kept_S: Tensor) -> Tensor:
    """The part of a map that reads removed units, zero elsewhere."""
    lost_XU = w_XU.clone()
    lost_XU[:, kept_S] = 0
    return lost_XU


def logit_map(
    q_gram_KK: Tensor, k_gram_KK: Tensor, kept_S: Tensor, owner: str, ridge: float = RIDGE
) -> Tensor:
    """A (S, S), fp64, of one head from its Grams of all dims (any common factor cancels)."""
    removed = torch.ones(q_gram_KK.shape[0], dtype=torch.bool, device=q_gram_KK.device)
    removed[kept_S] = False
    halves_SP = []
    for gram_KK in (q_gram_KK.double(), k_gram_KK.double()):
        gram_SK = ((gram_KK + gram_KK.T) / 2)[kept_S]
        halves_SP.append(
            ridge_solve(gram_SK[:, kept_S], gram_SK[:, removed], ridge, owner, steps=2)
        )
    map_SS: Tensor = halves_SP[0] @ halves_SP[1].T
    map_SS.diagonal().add_(1)
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
