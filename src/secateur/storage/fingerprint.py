"""A few logits for a fixed input, by which a rebuilt model proves to be the saved one.

Legend: B images, C channels, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from secateur.models.caches import evaluating
from secateur.models.outputs import outputs_of

IMAGES = 2
LOGITS = 8
SEED = 20_240_229

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference between CPUs and library versions, as a share of the largest logit."""


@torch.inference_mode()
def probe(model: nn.Module, input_size: tuple[int, int, int], seed: int = SEED) -> Tensor:
    """The first logits of `model` for a fixed normal input: (B, at most LOGITS), float64, CPU.

    The input is drawn by numpy's legacy generator, whose stream is frozen across versions.
    """
    like = next(p for p in model.parameters() if p.is_floating_point())
    x_BCHW = torch.from_numpy(np.random.RandomState(seed).standard_normal((IMAGES, *input_size)))
    with evaluating(model):
        logits = outputs_of(model(x_BCHW.to(device=like.device, dtype=like.dtype)))
    return logits.detach().flatten(1)[:, :LOGITS].cpu().double()


def tolerance(logits: Tensor, dtype: torch.dtype, *, share: float = 1.0) -> float:
    """How far logits may differ when computed elsewhere, in units of the logits."""
    return share * (TOLERANCE[dtype] * float(logits.abs().max()) + 1e-6)


def agree(found: Tensor, expected: Tensor, largest: float) -> bool:
    """Whether two sets of logits have one shape and differ by at most `largest`."""
    same = found.shape == expected.shape
    return same and bool(((found - expected).abs() <= largest).all())
