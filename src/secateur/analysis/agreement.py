"""Does a score know what degradation a removal does? Rank correlation with what was measured."""

import math
from collections.abc import Mapping

from scipy.stats import spearmanr


def rank_correlation(score: Mapping[str, float], degradation: Mapping[str, float]) -> float | None:
    """Spearman's ρ of scores and degradations over the owners that both name.

    None with fewer than three owners, or where either is the same for all.
    """
    owners = [owner for owner in degradation if owner in score]
    if len(owners) < 3:
        return None
    x, y = [score[owner] for owner in owners], [degradation[owner] for owner in owners]
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = float(spearmanr(x, y).statistic)
    return None if math.isnan(rho) else rho
