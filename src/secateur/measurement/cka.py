"""Linear CKA with the unbiased estimator of HSIC, from rows or from sums.

CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) (Kornblith et al., ICML 2019, arXiv 1905.00414) with
HSIC_1 of Song et al., JMLR 2012, eq. 5, which is unbiased for any number of examples n >= 4.
Legend: n examples, D features.
"""

from torch import Tensor

LEAST = 4
"""Examples that the unbiased estimator needs."""


def unbiased_hsic(
    trace: Tensor, ones_k: Tensor, ones_l: Tensor, ones_kl: Tensor, n: float
) -> Tensor:
    """HSIC_1 from tr KL, 1'K1, 1'L1 and 1'KL1 of Gram matrices K and L without their diagonals.

    HSIC_1 = [tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n (n-3)).
    """
    total = trace + ones_k * ones_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * ones_kl
    return total / (n * (n - 3))


def unbiased_cka(x_nD: Tensor, y_nD: Tensor) -> float | None:
    """CKA of two sets of rows, without any n × n matrix; None for too few or constant rows."""
    if len(x_nD) < LEAST:
        return None
    x_nD, y_nD = x_nD.double() - x_nD.double().mean(0), y_nD.double() - y_nD.double().mean(0)
    own = _hsic(x_nD, x_nD) * _hsic(y_nD, y_nD)
    return float(_hsic(x_nD, y_nD) / own.sqrt()) if float(own) > 0 else None


def _hsic(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    x2_n, y2_n = x_nD.square().sum(1), y_nD.square().sum(1)
    # Row sums of the Gram matrices without their diagonals.
    k_n, l_n = x_nD @ x_nD.sum(0) - x2_n, y_nD @ y_nD.sum(0) - y2_n
    trace = (x_nD.T @ y_nD).square().sum() - x2_n @ y2_n
    return unbiased_hsic(trace, k_n.sum(), l_n.sum(), k_n @ l_n, len(x_nD))
