"""Similarity of the stream between depths, from the sums of `stream_similarity`.

Legend: P points of the stream, Q chosen points, D residual width, n examples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.analysis.spectra import effective_rank
from secateur.measurement.cka import LEAST, unbiased_hsic
from secateur.statistics import Sums
from secateur.statistics.kinds.stream_similarity import PARTS

ROUNDING = 1e-12
"""An HSIC below this share of the squared energy is rounding: the examples do not differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Similarity of one part of the tokens (class token or patches) between points of the stream.

    `cosine_PP` and `cka_QQ` are NaN where two points cannot be compared; `points` are those of
    `cka_QQ` and of `rank_Q`, the effective rank of the stream's covariance there.
    """

    cosine_PP: Tensor
    cka_QQ: Tensor
    points: tuple[int, ...]
    rank_Q: Tensor


def similarities(sums: Sums) -> dict[str, Similarity]:
    """By part of the tokens; a model without a class token has patches only."""
    return {part: _similarity(sums, part) for part in PARTS if f"{part}.count" in sums}


def _similarity(sums: Sums, part: str) -> Similarity:
    points = tuple(sorted(int(key.split(".")[2]) for key in sums if key.startswith(f"{part}.sum.")))
    cosine_PP = sums[f"{part}.cosine"] / sums[f"{part}.count"]
    # WHY: points of other shapes were never compared, and no cosine is exactly 0 by chance.
    cosine_PP = torch.where(cosine_PP == 0, torch.nan, cosine_PP)
    ranks = [_rank(sums, part, i) for i in points]
    return Similarity(
        cosine_PP=cosine_PP,
        cka_QQ=unbiased_cka(sums, part, points),
        points=points,
        rank_Q=torch.tensor(ranks, dtype=torch.float64),
    )


def unbiased_cka(sums: Sums, part: str, points: tuple[int, ...]) -> Tensor:
    """Linear CKA (Q, Q) with the unbiased estimator of HSIC, over all examples at once.

    NaN for fewer than four examples. Every term of the estimator (`secateur.measurement.cka`)
    follows from sums over examples; see docs/methods/analysis.md.
    """
    size = len(points)
    like = sums[f"{part}.sum.{points[0]}"]
    hsic_QQ = torch.full((size, size), torch.nan, dtype=torch.float64, device=like.device)
    n = float(sums[f"{part}.count"])
    if n < LEAST:
        return hsic_QQ
    for a, i in enumerate(points):
        for b, j in enumerate(points):
            if f"{part}.cross.{i}.{j}" in sums:
                hsic_QQ[a, b] = hsic_QQ[b, a] = _hsic(sums, part, points, i, j, n)
    energy_Q = torch.stack([sums[f"{part}.cross.{i}.{i}"].trace() / n for i in points])
    own_Q = hsic_QQ.diagonal()
    # WHY: before the first block the class token is the same for all images, similar to nothing.
    own_Q = torch.where(own_Q > ROUNDING * energy_Q.square(), own_Q, torch.nan)
    return hsic_QQ / (own_Q[:, None] * own_Q[None, :]).sqrt()


def _hsic(sums: Sums, part: str, points: tuple[int, ...], i: int, j: int, n: float) -> Tensor:
    cross_DD = sums[f"{part}.cross.{i}.{j}"]
    # Columns of `weighted` and `squares` are the points that can be compared with i, in order.
    mates_i, mates_j = _mates(sums, part, points, i), _mates(sums, part, points, j)
    x_sum, y_sum = sums[f"{part}.sum.{i}"], sums[f"{part}.sum.{j}"]
    x_by_y2 = sums[f"{part}.weighted.{i}"][:, mates_i.index(j)]
    y_by_x2 = sums[f"{part}.weighted.{j}"][:, mates_j.index(i)]
    both = sums[f"{part}.squares.{i}"][mates_i.index(j)]
    x2 = sums[f"{part}.cross.{i}.{i}"].trace()
    y2 = sums[f"{part}.cross.{j}.{j}"].trace()
    trace = cross_DD.square().sum() - both
    ones_k, ones_l = x_sum @ x_sum - x2, y_sum @ y_sum - y2
    ones_kl = x_sum @ cross_DD @ y_sum - x_sum @ x_by_y2 - y_sum @ y_by_x2 + both
    return unbiased_hsic(trace, ones_k, ones_l, ones_kl, n)


def _mates(sums: Sums, part: str, points: tuple[int, ...], i: int) -> list[int]:
    """The points that can be compared with point i, in order."""
    return [j for j in points if f"{part}.cross.{min(i, j)}.{max(i, j)}" in sums]


def _rank(sums: Sums, part: str, point: int) -> float:
    n = float(sums[f"{part}.count"])
    mean_D = sums[f"{part}.sum.{point}"] / n
    cov_DD = sums[f"{part}.cross.{point}.{point}"] / n - torch.outer(mean_D, mean_D)
    return float(effective_rank(torch.linalg.eigvalsh(cov_DD)))
