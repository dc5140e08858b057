from types import SimpleNamespace

import pytest
import torch

from secateur.errors import UserError
from secateur.models.outputs import outputs_of


def test_logits_of_whatever_a_model_returns() -> None:
    logits = torch.ones(2, 3)
    assert outputs_of(logits) is logits
    assert outputs_of(SimpleNamespace(logits=logits)) is logits
    assert outputs_of({"loss": logits, "logits": logits}) is logits
    assert outputs_of((logits, None)) is logits
    with pytest.raises(UserError, match="neither logits nor features"):
        outputs_of({"loss": torch.ones(2, 2), "mask": torch.ones(2, 2, dtype=torch.bool)})


def test_features_are_joined_as_tokens_of_one_width() -> None:
    tokens, pooled, grid = torch.rand(2, 5, 4), torch.rand(2, 3), torch.rand(2, 4, 2, 3)
    found = outputs_of({"tokens": tokens, "pooled": pooled, "maps": (grid,), "loss": None})
    assert found.shape == (2, 5 + 1 + 6, 4)
    assert torch.equal(found[:, :5], tokens)
    assert torch.equal(found[:, 5, :3], pooled) and not found[:, 5, 3].any()
    assert torch.equal(found[:, 6:].transpose(1, 2).unflatten(2, (2, 3)), grid)
