"""Bring the scores of different layers to one scale before they compete under one budget."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur.allocation.types import Key
from secateur.models.types import Anatomy

Normalise = Literal["none", "zscore", "sum", "rank"]


def normalised(scores: Mapping[Key, Tensor], how: Normalise, anatomy: Anatomy) -> dict[Key, Tensor]:
    """Unit scores on one scale, per branch and group, never below 0; the order within is kept.

    - `zscore`: standardised per layer (FLAP, AAAI 2024), then shifted by one constant for all, so
      that the least unit of the model is worth 0 and layers compare as they do in the paper. A
      head counts as many times as it has value dims.
    - `sum`: divided by the sum over the layer ("total-sum scaling").
    - `rank`: the share of all units of the same group, over all layers, that are worth no more
      (Isomorphic Pruning, ECCV 2024, arXiv 2407.04616): one threshold then takes the same share
      of every kind of structure, and the least of each.

    Scores of whole branches and blocks stay as they are.
    """
    units = {key: score.double() for key, score in scores.items() if score.ndim > 0}
    if how == "none" or not units:
        return dict(scores)
    if how == "sum":
        scaled = {key: _over(score, score.sum()) for key, score in units.items()}
        return {**scores, **scaled}
    if how == "rank":
        return {**scores, **_ranks(units)}
    scaled = {key: _over(s - s.mean(), s.std(correction=0)) for key, s in units.items()}
    least = min(float(score.min()) for score in scaled.values())
    return {
        **scores,
        **{key: (score - least) * _dims(key, anatomy) for key, score in scaled.items()},
    }


def _ranks(units: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Scores of each group replaced by their ranks among all of that group, in (0, 1].

    Those of dims are divided by the number of heads.
    """
    ranked: dict[Key, Tensor] = {}
    for group in {group for _, group in units}:
        own = {key: score for key, score in units.items() if key[1] == group}
        every = torch.cat([score.flatten() for score in own.values()]).sort().values
        for key, score in own.items():
            share = torch.searchsorted(every, score, right=True).double() / every.numel()
            # WHY: a step of a head's dims takes one from every head, and is as large as their mean.
            ranked[key] = share / score.shape[0] if score.ndim == 2 else share
    return ranked


def _over(score: Tensor, divisor: Tensor) -> Tensor:
    """The quotient; zeros where all units of a layer are alike."""
    return score / divisor if float(divisor) > 0 else torch.zeros_like(score)


def _dims(key: Key, anatomy: Anatomy) -> int:
    owner, group = key
    return anatomy.branch(owner).shape.size("vo") if group == "heads" else 1
