"""How many dims of a group carry something: spectra and effective ranks from moments.

Legend: H heads, K query/key dims, V value dims, F hidden neurons, D residual width, S spectrum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Sums
from secateur.statistics.moments import moments
from secateur.surgery.rotate import matrix_roots, query_key_basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The spectrum of one group of one branch, averaged over heads.

    `share_S` sums to 1, largest first. `effective` is the effective rank, `most` the number of
    dims that hold 99 % of the sum, both of `size` dims.
    """

    group: GroupName
    size: int
    share_S: Tensor
    effective: float
    most: int


def effective_rank(spectrum_S: Tensor) -> Tensor:
    """exp of the entropy of the spectrum as a distribution, over the last axis.

    Between 1 (all in one dim) and the number of dims (all alike). Roy & Vetterli, EUSIPCO 2007,
    there of singular values, here of eigenvalues of a covariance. Negative rounding counts as 0.
    """
    share_S = shares(spectrum_S)
    entropy: Tensor = torch.special.entr(share_S).sum(-1)
    return entropy.exp()


def shares(spectrum_S: Tensor) -> Tensor:
    """A spectrum made to sum to 1, largest first, fp64; all alike where it is zero."""
    value_S = spectrum_S.double().clamp(min=0).sort(dim=-1, descending=True).values
    total = value_S.sum(-1, keepdim=True)
    alike = torch.full_like(value_S, 1 / value_S.shape[-1])
    return torch.where(total > 0, value_S / total.clamp(min=1e-300), alike)


def spectra(weights: BranchWeights, about: dict[str, Sums]) -> list[Spectrum]:
    """The spectra of the groups of one branch, from its moments.

    `qk`: squared singular values of G_q^1/2 G_k^1/2, whose tail is the squared error of the logits
    at a lower rank. `vo`: eigenvalues of the covariance of what a head writes, W_h C_h W_h^T.
    `hidden`: eigenvalues of the covariance of the neurons, each scaled by the norm of its column
    of the writer.
    """
    if isinstance(weights, MlpWeights):
        cov_FF = moments(about["hidden_moments"]).cov_UU
        norm_F = weights.w2_DF.double().norm(dim=0)
        return [_spectrum("hidden", torch.linalg.eigvalsh(norm_F[:, None] * cov_FF * norm_F))]
    assert isinstance(weights, AttentionWeights)
    sums = about["attention_moments"]
    basis = query_key_basis(sums["q_gram"] / sums["count"], sums["k_gram"] / sums["count"])
    return [_spectrum("qk", basis.spectrum_HK), _spectrum("vo", _value_spectrum(weights, about))]


def _value_spectrum(weights: AttentionWeights, about: dict[str, Sums]) -> Tensor:
    """Eigenvalues (H, V) of C_h^1/2 W_h^T W_h C_h^1/2, those of W_h C_h W_h^T but for zeros."""
    heads, dims = weights.shape.heads, weights.shape.vo
    blocks_HVV = head_blocks(moments(about["context_moments"]).cov_UU, heads, dims)
    root_HVV, _ = matrix_roots(blocks_HVV)
    value_HV: Tensor = torch.linalg.svdvals(weights.o_DHV.double().transpose(0, 1) @ root_HVV)
    return value_HV.square()


def head_blocks(cov_UU: Tensor, heads: int, dims: int) -> Tensor:
    """The blocks (H, V, V) of single heads on the diagonal of a joint covariance."""
    blocks = [cov_UU[h * dims : (h + 1) * dims, h * dims : (h + 1) * dims] for h in range(heads)]
    return torch.stack(blocks)


def _spectrum(group: GroupName, value_HS: Tensor) -> Spectrum:
    share_HS = shares(value_HS if value_HS.ndim == 2 else value_HS[None])
    held_HS = share_HS.cumsum(-1)
    most_H = (held_HS < 0.99).sum(-1) + 1
    return Spectrum(
        group=group,
        size=share_HS.shape[-1],
        share_S=share_HS.mean(0),
        effective=float(effective_rank(share_HS).mean()),
        most=round(float(most_H.double().mean())),
    )
