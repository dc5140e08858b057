"""Queries, keys and values of which keys have no bias: what stands for one, and its rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeylessLinear(nn.Linear):
    """Queries, keys and values in one product, with a bias for queries and values only.

    A constant of all keys changes no softmax, unless keys are `turned` by a norm or rotary
    embeddings.
    """

    turned = False

    def forward(self, x_BND: Tensor) -> Tensor:
        """The product; between its two parts, the bias is zero for the keys."""
        keys = self.out_features - self.bias.numel()
        query, value = self.bias[:keys], self.bias[keys:]
        return F.linear(x_BND, self.weight, torch.cat([query, torch.zeros_like(query), value]))


def carries(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a bias of this layer can do for any constant in all of its rows."""
    if layer.bias is None:
        return False
    return len(layer.bias) == len(layer.weight) or not getattr(layer, "turned", False)


def rows_with_bias(layer: nn.Linear | nn.Conv2d, rows_R: Tensor) -> Tensor:
    """Of one value per row of a layer that has a bias, those of the rows that have one."""
    assert layer.bias is not None
    keys = rows_R.numel() - layer.bias.numel()
    return torch.cat([rows_R[:keys], rows_R[2 * keys :]]) if keys else rows_R
