"""Folding what closes into what stays, against least squares on raw rows."""

import pytest
import torch

from secateur.models.weights import MlpWeights
from secateur.statistics import Sums
from secateur.statistics.kinds.moments import add_moments_
from secateur.surgery.take_over import take_over


@pytest.mark.parametrize("biased", [True, False])
def test_only_columns_of_live_inputs_change(biased: bool) -> None:
    torch.manual_seed(0)
    x_TU = torch.randn(400, 6) @ torch.randn(6, 6) + 1
    w_DU, b_D = torch.randn(4, 6), torch.randn(4) if biased else None
    weights = MlpWeights(
        readers_FD=(torch.randn(6, 4),), reader_biases_F=(None,), w2_DF=w_DU, b2_D=b_D
    )
    sums: Sums = {}
    add_moments_(sums, x_TU[None])
    before_U = torch.tensor([True, True, True, True, False, False])
    after_U = torch.tensor([True, True, False, False, True, False])
    found = take_over(weights, before_U, after_U, sums, "x")
    assert isinstance(found, MlpWeights)
    assert not found.w2_DF[:, 2:4].any()
    assert torch.equal(found.w2_DF[:, 4:], w_DU[:, 4:].double())
    rows_TS = x_TU[:, :2].double()
    if biased:
        rows_TS = torch.cat([rows_TS, torch.ones(400, 1).double()], 1)
    expected = torch.linalg.lstsq(rows_TS, x_TU[:, :4].double() @ w_DU[:, :4].T.double()).solution
    torch.testing.assert_close(found.w2_DF[:, :2], expected[:2].T, rtol=1e-4, atol=1e-4)
    if b_D is None:
        assert found.b2_D is None
    else:
        assert found.b2_D is not None
        torch.testing.assert_close(found.b2_D, b_D.double() + expected[2], rtol=1e-4, atol=1e-4)
