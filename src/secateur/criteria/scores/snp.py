"""SNP: query/key dims that span the attention scores; values and neurons unlike all others.

Legend: D residual width, H heads, J singular components, K query/key dims, V value dims, F hidden
neurons, U rows, R some of the rows.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.errors import UserError
from secateur.models.stream import StreamWeights
from secateur.models.types import Anatomy, AttentionShape, GroupName
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.statistics.kinds.snp import components, leading, snp_kind

SOURCE = "SNP, ECCV 2024, arXiv 2404.11630"
ROWS = 128
"""Rows that are compared with all others at a time."""


class SnpSettings(BaseModel):
    """What the paper leaves open about query/key dims.

    `gamma` is the number of singular components that count (None: half the dims of a head).
    `aggregate` decomposes the attention scores of each image and averages, or those of all images
    stacked. Without `class_token`, only patches count, no class, distillation or register tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gamma: Annotated[int, Field(ge=1, strict=True)] | None = None
    aggregate: Literal["per_image", "stacked"] = "per_image"
    class_token: bool = True


def check_rank(settings: BaseModel | None, anatomy: Anatomy, group: GroupName) -> None:
    """UserError where gamma exceeds the number of singular components that there can be."""
    assert isinstance(settings, SnpSettings)
    if group != "qk" or settings.gamma is None:
        return
    for branch in anatomy.branches:
        if "qk" in branch.groups and isinstance(branch.shape, AttentionShape):
            tokens = branch.tokens - (0 if settings.class_token else anatomy.prefix_tokens)
            if settings.gamma > (rank := min(tokens, branch.shape.qk)):
                raise UserError(
                    f"gamma {settings.gamma} is larger than the rank of the attention scores of "
                    f"{branch.id}, at most {rank} with {tokens} tokens and {branch.shape.qk} "
                    f"dims per head; set gamma to at most {rank}."
                )


def _kind(settings: BaseModel, *, centred: bool) -> str:
    """The statistics about query/key dims."""
    assert isinstance(settings, SnpSettings)
    return snp_kind(
        settings.aggregate,
        class_token=settings.class_token,
        centred=centred,
        every=settings.gamma is not None,
    )


def _needs(settings: BaseModel, *, centred: bool) -> dict[GroupName, tuple[str, ...]]:
    kind = _kind(settings, centred=centred)
    return {"qk": (kind,), "vo": (), "heads": (), "hidden": (), "width": ()}


def raw_needs(settings: BaseModel) -> dict[GroupName, tuple[str, ...]]:
    """Statistics with keys as they are."""
    return _needs(settings, centred=False)


def centred_needs(settings: BaseModel) -> dict[GroupName, tuple[str, ...]]:
    """Statistics with keys centred over the tokens of each image."""
    return _needs(settings, centred=True)


def dissimilarity(rows_UD: Tensor) -> Tensor:
    """sum over all rows l of 1 - |cos(row, row l)|: (U,), fp64; 0 for a row of zeros."""
    rows_UD = rows_UD.double()
    unit_UD = F.normalize(rows_UD, dim=1, eps=torch.finfo(torch.float64).tiny)
    alike_U = torch.zeros_like(unit_UD[:, 0])
    for start in range(0, len(unit_UD), ROWS):
        end = start + ROWS
        # WHY from here on: the matrix of cosines is symmetric.
        cosines_RU = (unit_UD[start:end] @ unit_UD[start:].T).abs_()
        alike_U[start:end] += cosines_RU.sum(1)
        alike_U[end:] += cosines_RU[:, ROWS:].sum(0)
    total_U = (len(rows_UD) - alike_U).clamp(min=0)
    return torch.where(rows_UD.any(1), total_U, torch.zeros_like(total_U))


def shared(stream: StreamWeights, *, magnitude: bool = False) -> Tensor:
    """Dissimilarity of a channel's rows in every member that writes it: (D,), fp64, sum 1.

    Each member's scores are divided by their sum, then averaged over members, as the options
    `TSS_NORM` and `AVERAGE` of the authors' tool say. `magnitude` weighs rows by their norms.
    """
    members = []
    for rows_DF in stream.writers.values():
        score_D = dissimilarity(rows_DF)
        if magnitude:
            score_D = score_D * rows_DF.double().norm(dim=1)
        members.append(score_D / score_D.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return torch.stack(members).mean(0)


def _aligned(question: Question, which: str, *, centred: bool) -> Tensor:
    """Mean over images of the first gamma components, by `cosine` or `strength`: (H, K)."""
    settings = question.settings or SnpSettings()
    assert isinstance(settings, SnpSettings)
    sums = question.sums[_kind(settings, centred=centred)]
    if "cosine" in sums:
        found_HJK = sums[which] / sums["images"]
    else:
        cosine_HJK, strength_HJK = components(sums["q_gram"], sums["k_gram"])
        found_HJK = cosine_HJK if which == "cosine" else strength_HJK
    gamma = settings.gamma or leading(found_HJK.shape[-1])
    return found_HJK[:, :gamma].sum(1)


def _unlike(question: Question, *, magnitude: bool = False) -> Tensor:
    """Dissimilarity of value rows over all heads (H, V), of neurons (F,), of channels (D,).

    A head is worth the sum of its value rows: (H,).
    """
    if question.stream is not None:
        return shared(question.stream, magnitude=magnitude)
    weights = question.weights
    if isinstance(weights, MlpWeights):
        rows_FD = torch.cat(weights.readers_FD, dim=1)
        score_F = dissimilarity(rows_FD)
        size_F = rows_FD.double().norm(dim=1) * weights.w2_DF.double().norm(dim=0)
        return score_F * size_F if magnitude else score_F
    assert isinstance(weights, AttentionWeights)
    score_HV = dissimilarity(weights.v_HVD.flatten(0, 1)).view(weights.v_HVD.shape[:2])
    size_HV = weights.v_HVD.double().norm(dim=2) * weights.o_DHV.double().norm(dim=0)
    score_HV = score_HV * size_HV if magnitude else score_HV
    return score_HV.sum(1) if question.group == "heads" else score_HV


DEFAULT = SnpSettings()


@criterion(
    "snp",
    title="Structured neuron-level pruning (SNP)",
    source=SOURCE,
    needs=raw_needs(DEFAULT),
    settings=SnpSettings,
    needs_with=raw_needs,
    check=check_rank,
)
def snp(question: Question) -> Tensor:
    """Alignment of q and k with the leading components of QK^T; dissimilarity of weight rows else.

    Value rows are compared with those of all heads, rows of fc1 with all rows of fc1; for gated
    MLPs a neuron's rows are joined end to end. For channels of the stream see `shared`.
    """
    if question.group == "qk":
        return _aligned(question, "cosine", centred=False)
    return _unlike(question)


@criterion(
    "snp_centred",
    title="SNP with keys centred over tokens",
    source=f"{SOURCE}; centring derived from the softmax, which ignores the mean key",
    needs=centred_needs(DEFAULT),
    settings=SnpSettings,
    needs_with=centred_needs,
    check=check_rank,
)
def snp_centred(question: Question) -> Tensor:
    """As `snp`, but of the attention scores that the softmax sees: keys without their mean."""
    if question.group == "qk":
        return _aligned(question, "cosine", centred=True)
    return _unlike(question)


@criterion(
    "snp_magnitude",
    title="SNP weighted by magnitude",
    source=f"{SOURCE}; magnitudes, which the cosine forgets, added here",
    needs=centred_needs(DEFAULT),
    settings=SnpSettings,
    needs_with=centred_needs,
    check=check_rank,
)
def snp_magnitude(question: Question) -> Tensor:
    """sum of s_j |u_j.q_i| |v_j.k_i|, keys centred; dissimilarity times the size of a unit else.

    The size is the norm of the rows that read times that of the column that writes; for channels
    of the stream, the norm of the row.
    """
    if question.group == "qk":
        return _aligned(question, "strength", centred=True)
    return _unlike(question, magnitude=True)
