"""From a few measured degradations and an analytic error curve to a candidate list on one common
scale.

The analytic error (squared error of a layer's output) orders the sizes of one group well but not
those of different layers; measured divergences of the model's output are true but dear. So the
divergence is measured at a few sizes and carried to the others along the analytic curve, linearly
in log-log.
"""

import numpy as np

from secateur.allocation.types import Candidates

TINY = 1e-12
SLOPES = (0.5, 2.0)
"""Bounds of the log-log slope beyond the last measured size."""


def candidates_from_probes(
    owner: str,
    group: str,
    sizes: tuple[int, ...],
    errors: list[float],
    probes: dict[int, float],
) -> Candidates:
    """The candidate list of a group: `errors[i]` at `sizes[i]`, `probes[size]` measured divergences
    (nats).

    Below the smallest measured error, divergence is proportional to error (both are quadratic in
    a small change); beyond the largest, the last slope goes on. Losses never rise with size.
    """
    error_of = dict(zip(sizes, errors, strict=True))
    known = sorted((max(error_of[size], TINY), max(kl, TINY)) for size, kl in probes.items())
    losses = []
    for size, error in zip(sizes, errors, strict=True):
        losses.append(0.0 if size == sizes[-1] else _carried(max(error, TINY), known))
    ordered = np.maximum.accumulate(np.array(losses)[::-1])[::-1]
    return Candidates(
        owner=owner,
        group=group,  # type: ignore[arg-type]
        sizes=sizes,
        losses=tuple(float(loss) for loss in ordered),
    )


def _carried(error: float, known: list[tuple[float, float]]) -> float:
    """Divergence at an analytic error, along the measured (error, divergence) points."""
    x = np.log([point[0] for point in known])
    y = np.maximum.accumulate(np.log([point[1] for point in known]))
    at = np.log(error)
    if at <= x[0]:
        return float(np.exp(y[0] + at - x[0]))
    if at >= x[-1]:
        slope = 1.0
        if len(x) > 1 and x[-1] > x[-2]:
            slope = float(np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), *SLOPES))
        return float(np.exp(y[-1] + slope * (at - x[-1])))
    return float(np.exp(np.interp(at, x, y)))
