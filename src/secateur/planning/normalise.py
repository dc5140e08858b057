"""Bring the scores of different layers to one scale before they compete under one budget."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur.anatomy.types import Anatomy
from secateur.planning.types import Key

Normalise = Literal["none", "zscore", "sum"]


def normalised(scores: Mapping[Key, Tensor], how: Normalise, anatomy: Anatomy) -> dict[Key, Tensor]:
    """Unit scores on one scale, per branch and group, never below 0; the order within is kept.

    - `zscore`: standardised per layer (FLAP, AAAI 2024), then shifted by one constant for all, so
      that the least unit of the model is worth 0 and layers compare as they do in the paper. A
      head counts as many times as it has value dims.
    - `sum`: divided by the sum over the layer ("total-sum scaling").

    Scores of whole branches and blocks stay as they are.
    """
    units = {key: score.double() for key, score in scores.items() if score.ndim > 0}
    if how == "none" or not units:
        return dict(scores)
    if how == "sum":
        scaled = {key: _over(score, score.sum()) for key, score in units.items()}
        return {**scores, **scaled}
    scaled = {key: _over(s - s.mean(), s.std(correction=0)) for key, s in units.items()}
    least = min(float(score.min()) for score in scaled.values())
    return {
        **scores,
        **{key: (score - least) * _dims(key, anatomy) for key, score in scaled.items()},
    }


def _over(score: Tensor, divisor: Tensor) -> Tensor:
    """The quotient; zeros where all units of a layer are alike."""
    return score / divisor if float(divisor) > 0 else torch.zeros_like(score)


def _dims(key: Key, anatomy: Anatomy) -> int:
    owner, group = key
    return anatomy.branch(owner).shape.size("vo") if group == "heads" else 1
