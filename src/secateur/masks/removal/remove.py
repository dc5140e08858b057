"""Physical removal of what is masked: zero what must stay, cut out the rest.

Letters: H heads, K query/key dims, V value dims, F hidden neurons, D residual width.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.allocation.candidates import Limits
from secateur.allocation.types import Plan
from secateur.masks.gates import Site
from secateur.masks.masks import Masks, live_dims, plan_of_masks
from secateur.models.caches import copy_of
from secateur.models.family import read
from secateur.models.host import host_of
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.surgery.cut import cut_


def remove(model: nn.Module, masks: Masks, limits: Limits) -> tuple[nn.Module, Plan]:
    """A copy of `model` without the masked units, and the plan that describes it.

    It computes what the masked model computes. Masked units that other units keep from being cut
    out stay with weights of zero.
    """
    smaller = copy_of(model)
    plan = plan_of_masks(read(model), masks, limits)
    zero_(smaller, masks)
    cut_(smaller, plan, None, "none")
    return smaller, plan


@torch.no_grad()
def zero_(model: nn.Module, masks: Masks) -> None:
    """Set the weights to zero through which masked units act; the shapes stay.

    Neurons and value dims lose their columns of the writer, so that no activation of zero and no
    bias matters; query and key dims lose their rows and biases, outputs their rows and biases.
    """
    host = host_of(model)
    for branch in host.anatomy.branches:
        if own := masks.get(branch.id):
            host.assign_(branch, _zeroed(host.weights(branch), own))


def _zeroed(weights: BranchWeights, masks: Mapping[Site, Tensor]) -> BranchWeights:
    if isinstance(weights, MlpWeights):
        w2_DF = weights.w2_DF
        if "hidden" in masks:
            w2_DF = w2_DF * masks["hidden"].to(w2_DF)
        return replace(weights, w2_DF=_rows(w2_DF, masks), b2_D=_bias(weights.b2_D, masks))
    return _zeroed_attention(weights, masks)


def _zeroed_attention(weights: AttentionWeights, masks: Mapping[Site, Tensor]) -> AttentionWeights:
    q_HKD, k_HKD, o_DHV = weights.q_HKD, weights.k_HKD, weights.o_DHV
    qb_HK, kb_HK = weights.qb_HK, weights.kb_HK
    _, context_HV = live_dims(weights.shape, masks)
    if "query" in masks:
        query_HK = masks["query"].to(q_HKD)
        q_HKD, qb_HK = q_HKD * query_HK[..., None], None if qb_HK is None else qb_HK * query_HK
    if "key" in masks:
        key_HK = masks["key"].to(k_HKD)
        k_HKD, kb_HK = k_HKD * key_HK[..., None], None if kb_HK is None else kb_HK * key_HK
    return replace(
        weights,
        q_HKD=q_HKD,
        k_HKD=k_HKD,
        qb_HK=qb_HK,
        kb_HK=kb_HK,
        o_DHV=_rows(o_DHV * context_HV.to(o_DHV), masks),
        ob_D=_bias(weights.ob_D, masks),
    )


def _rows(written: Tensor, masks: Mapping[Site, Tensor]) -> Tensor:
    """What a writer writes, with rows of zeros where its output is masked."""
    update = masks.get("update")
    if update is None or update.ndim == 0:
        return written
    return written * update.to(written).reshape(-1, *[1] * (written.ndim - 1))


def _bias(bias: Tensor | None, masks: Mapping[Site, Tensor]) -> Tensor | None:
    return None if bias is None else _rows(bias, masks)
