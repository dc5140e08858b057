"""Reduce one branch to a shape: rotate queries with keys and values with the projection,
eliminate hidden neurons and heads, refit the writer.

Legend: D residual width, H heads, K query/key dims, V value dims, F hidden, U inputs of a writer,
R and S kept.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.criteria.elimination import Elimination, eliminate, eliminate_heads
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.surgery.moments import RIDGE
from secateur.surgery.refit import LACK_RIDGES, RIDGES, Joint, merge, refit
from secateur.surgery.rotate import query_key_basis, value_basis


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitSettings:
    """How writers are refitted: candidates for both ridges, and the blend (None: chosen).

    `metric_DD` whitens the output when units are ranked: the root of a sensitivity matrix.
    """

    ridges: tuple[float, ...] = RIDGES
    lack_ridges: tuple[float, ...] = LACK_RIDGES
    blend: float | None = None
    select_ridge: float = RIDGE
    metric_DD: Tensor | None = field(default=None)

    def whiten(self, w_DU: Tensor) -> Tensor:
        """The writer as the metric sees it."""
        w_DU = w_DU.double()
        return w_DU if self.metric_DD is None else self.metric_DD @ w_DU


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
    weights: AttentionWeights, size: int, joint: Joint, settings: RefitSettings
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
    fit: Joint,
    held: Joint | None,
    settings: RefitSettings,
    owner: str,
) -> AttentionWeights:
    """Rotate every head's values onto its best `size` dims and refit the projection.

    The dense size keeps the basis and only refits.
    """
    heads, dims = weights.v_HVD.shape[:2]
    device = weights.v_HVD.device
    encode_HVR = torch.eye(dims, dtype=torch.float64, device=device).expand(heads, dims, dims)
    encode = torch.arange(heads * dims, device=device)
    if size < dims:
        both = fit if held is None else merge(fit, held)
        encode_HVR, _ = value_basis(
            both.cov_UU, settings.whiten(weights.o_DHV.flatten(1)), heads, size
        )
        encode = torch.block_diag(*encode_HVR)
    done = refit(
        weights.o_DHV.flatten(1),
        weights.ob_D,
        encode,
        fit,
        held,
        ridges=settings.ridges,
        lack_ridges=settings.lack_ridges,
        blend=settings.blend,
        owner=owner,
    )
    encode_HRV = encode_HVR.transpose(1, 2)
    return replace(
        weights,
        v_HVD=encode_HRV @ weights.v_HVD.double(),
        vb_HV=_encode_bias(encode_HRV, weights.vb_HV),
        o_DHV=done.w_DS.unflatten(1, (heads, size)),
        ob_D=done.b_D,
    )


def reduce_hidden(
    weights: MlpWeights,
    size: int,
    fit: Joint,
    held: Joint | None,
    settings: RefitSettings,
    owner: str,
    order: Elimination | None = None,
) -> MlpWeights:
    """Eliminate hidden neurons down to `size` and refit fc2; the dense size only refits.

    `order` is the elimination on these very moments, where it is known already.
    """
    hidden = weights.w2_DF.shape[1]
    kept_S = torch.arange(hidden, device=weights.w2_DF.device)
    if size < hidden:
        kept_S = (order or _elimination(weights, fit, held, settings)).kept(size)
    done = refit(
        weights.w2_DF,
        weights.b2_D,
        kept_S,
        fit,
        held,
        ridges=settings.ridges,
        lack_ridges=settings.lack_ridges,
        blend=settings.blend,
        owner=owner,
    )
    return replace(
        weights,
        readers_FD=tuple(w[kept_S] for w in weights.readers_FD),
        reader_biases_F=tuple(None if b is None else b[kept_S] for b in weights.reader_biases_F),
        w2_DF=done.w_DS,
        b2_D=done.b_D,
        unit_FT=None if weights.unit_FT is None else weights.unit_FT[kept_S],
    )


def _elimination(
    weights: MlpWeights, fit: Joint, held: Joint | None, settings: RefitSettings
) -> Elimination:
    """The elimination of hidden neurons on the moments of all images."""
    both = fit if held is None else merge(fit, held)
    return eliminate(both.cov_UU, settings.whiten(weights.w2_DF), settings.select_ridge)


def _encode_bias(encode_HRK: Tensor, bias_HK: Tensor | None) -> Tensor | None:
    return None if bias_HK is None else (encode_HRK @ bias_HK.double()[..., None])[..., 0]
