"""Reduce one branch to a shape: rotate queries with keys and values with the projection,
eliminate hidden neurons and heads, refit the writer.

A refitted writer follows a blend of two targets (see `secateur.surgery.solve`), each given by its
correction to W x + b of the present writer. The local target is what the dense weights give on the
same stream; its correction is zero unless the branch changed elsewhere, as when its queries and
keys were reduced. The stream target is what the dense model's stream holds at this place, so that
later layers correct earlier ones.

Legend: D residual width, H heads, K query/key dims, V value dims, F hidden, U inputs of a writer,
R and S kept.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.criteria.elimination import Elimination, eliminate, eliminate_heads
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.statistics.moments import Moments, merged
from secateur.surgery.rotate import query_key_basis, value_basis
from secateur.surgery.solve import RIDGE, Choice, choose, encoded, least_squares

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for the ridges of both targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitSettings:
    """How writers are refitted: candidates for both ridges, and the blend (None: chosen).

    `metric_DD` whitens the output when units are ranked: the root of a sensitivity matrix.
    """

    ridges: tuple[float, ...] = RIDGES
    lack_ridges: tuple[float, ...] = RIDGES
    blend: float | None = None
    select_ridge: float = RIDGE
    metric_DD: Tensor | None = field(default=None)

    def whiten(self, w_DU: Tensor) -> Tensor:
        """The writer as the metric sees it."""
        w_DU = w_DU.double()
        return w_DU if self.metric_DD is None else self.metric_DD @ w_DU


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A refitted writer (D, S) and bias (D,), fp64, with the ridges and the blend behind it."""

    w_DS: Tensor
    b_D: Tensor
    choice: Choice


def refit(
    w_DU: Tensor,
    b_D: Tensor | None,
    encode: Tensor | None,
    fit: Moments,
    held: Moments | None,
    settings: RefitSettings,
    owner: str,
) -> Refit:
    """The best writer of encoded inputs; chosen on `held`, then solved on both sets together.

    `fit` and `held` are moments of the inputs with the corrections to both targets (none: zero);
    `encode` holds indices (S,) of kept inputs or a matrix (U, S), None for all inputs. Without
    `held` the first ridges are taken, and the blend given or 0.
    """
    w_DU = w_DU.double()
    # WHY: dims of a rotation are new, so that no weights are there to hold on to.
    prior_DS = w_DU if encode is None else w_DU[:, encode] if encode.dtype == torch.long else None
    ridges, lack_ridges, blend = settings.ridges, settings.lack_ridges, settings.blend
    choice = Choice(ridge=ridges[0], lack_ridge=lack_ridges[0], blend=blend or 0.0)
    if held is not None:
        seen, judge = encoded(fit, encode, w_DU), encoded(held, encode, w_DU)
        choice = choose(seen, judge, owner, ridges, lack_ridges, blend, prior_DS=prior_DS)
        del seen, judge
        fit = merged(fit, held)
    found = least_squares(encoded(fit, encode, w_DU), owner, choice, prior_DS=prior_DS)
    bias_D = found.b_D if b_D is None else b_D.double() + found.b_D
    return Refit(w_DS=found.w_DS, b_D=bias_D, choice=choice)


def reduce_query_key(
    weights: AttentionWeights, size: int, q_gram_HKK: Tensor, k_gram_HKK: Tensor
) -> AttentionWeights:
    """Rotate every head's queries and keys onto their best `size` joint dims."""
    basis = query_key_basis(q_gram_HKK, k_gram_HKK)
    q_HRK = basis.encode_q_HKR[..., :size].transpose(1, 2)
    k_HRK = basis.encode_k_HKR[..., :size].transpose(1, 2)
    return replace(
        weights,
        q_HKD=q_HRK @ weights.q_HKD.double(),
        k_HKD=k_HRK @ weights.k_HKD.double(),
        qb_HK=_encode_bias(q_HRK, weights.qb_HK),
        kb_HK=_encode_bias(k_HRK, weights.kb_HK),
    )


def reduce_heads(
    weights: AttentionWeights, size: int, joint: Moments, settings: RefitSettings
) -> AttentionWeights:
    """Keep the `size` heads whose removal would cost most; the projection is refitted later."""
    w_DU = settings.whiten(weights.o_DHV.flatten(1))
    order = eliminate_heads(joint.cov_UU, w_DU, weights.shape.heads, settings.select_ridge)
    kept_H = order.kept(size)

    def rows(full: Tensor | None) -> Tensor | None:
        return None if full is None else full[kept_H]

    return replace(
        weights,
        q_HKD=weights.q_HKD[kept_H],
        k_HKD=weights.k_HKD[kept_H],
        v_HVD=weights.v_HVD[kept_H],
        o_DHV=weights.o_DHV[:, kept_H],
        qb_HK=rows(weights.qb_HK),
        kb_HK=rows(weights.kb_HK),
        vb_HV=rows(weights.vb_HV),
        table_HT=rows(weights.table_HT),
    )


def reduce_value(
    weights: AttentionWeights,
    size: int,
    fit: Moments,
    held: Moments | None,
    settings: RefitSettings,
    owner: str,
) -> AttentionWeights:
    """Rotate every head's values onto its best `size` dims and refit the projection.

    The dense size keeps the basis and only refits.
    """
    heads, dims = weights.v_HVD.shape[:2]
    w_DU, encode = weights.o_DHV.flatten(1), None
    if size < dims:
        both = fit if held is None else merged(fit, held)
        encode_HVR, _ = value_basis(both.cov_UU, settings.whiten(w_DU), heads, size)
        encode = torch.block_diag(*encode_HVR)
        encode_HRV = encode_HVR.transpose(1, 2)
        weights = replace(
            weights,
            v_HVD=encode_HRV @ weights.v_HVD.double(),
            vb_HV=_encode_bias(encode_HRV, weights.vb_HV),
        )
    done = refit(w_DU, weights.ob_D, encode, fit, held, settings, owner)
    return replace(weights, o_DHV=done.w_DS.unflatten(1, (heads, size)), ob_D=done.b_D)


def reduce_hidden(
    weights: MlpWeights,
    size: int,
    fit: Moments,
    held: Moments | None,
    settings: RefitSettings,
    owner: str,
    order: Elimination | None = None,
) -> MlpWeights:
    """Eliminate hidden neurons down to `size` and refit fc2; the dense size only refits.

    `order` is the elimination on these very moments, where it is known already.
    """
    kept_S = None
    if size < weights.w2_DF.shape[1]:
        order = order or _elimination(weights, fit, held, settings)
        kept_S = order.kept(size).to(weights.w2_DF.device)
    done = refit(weights.w2_DF, weights.b2_D, kept_S, fit, held, settings, owner)
    weights = replace(weights, w2_DF=done.w_DS, b2_D=done.b_D)
    if kept_S is None:
        return weights
    return replace(
        weights,
        readers_FD=tuple(w[kept_S] for w in weights.readers_FD),
        reader_biases_F=tuple(None if b is None else b[kept_S] for b in weights.reader_biases_F),
        unit_FT=None if weights.unit_FT is None else weights.unit_FT[kept_S],
    )


def _elimination(
    weights: MlpWeights, fit: Moments, held: Moments | None, settings: RefitSettings
) -> Elimination:
    """The elimination of hidden neurons on the moments of all images."""
    both = fit if held is None else merged(fit, held)
    return eliminate(both.cov_UU, settings.whiten(weights.w2_DF), settings.select_ridge)


def _encode_bias(encode_HRK: Tensor, bias_HK: Tensor | None) -> Tensor | None:
    return None if bias_HK is None else (encode_HRK @ bias_HK.double()[..., None])[..., 0]
