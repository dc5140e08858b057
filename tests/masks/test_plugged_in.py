"""A new granularity or gate estimator is one registration, and everything else follows."""

import pytest
import torch
from torch import Tensor

import secateur
from secateur.masks.estimator import Scores, estimators, straight_through
from secateur.masks.gates import Act, Gate
from secateur.masks.granularity import Granularity, Scope, granularities
from secateur.masks.layout import gate
from secateur.masks.settings import LearnSettings


def pairs(scope: Scope) -> list[Gate]:
    """Neighbouring neurons share a score."""
    gates = []
    for mlp in scope.mlps():
        neurons = mlp.shape.size("hidden")
        index = torch.arange(neurons) // 2
        act = Act(branch=mlp.id, site="hidden", takes="hidden", index=index)
        gates.append(gate(scope, f"{mlp.id}.pairs", "hidden", 1, neurons // 2, [act]))
    return gates


class Softplus:
    """A hard mask whose gradient is that of softplus."""

    title, source = "Softplus", "a test"
    hard = True

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        return {"raw": 1 + 0.5 * worth_RU}

    def margin(self, scores: Scores) -> Tensor:
        return scores["raw"]

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        return straight_through(live_RU, torch.nn.functional.softplus(scores["raw"]))

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        return self.gate(scores, live_RU)

    def clamp_(self, scores: Scores) -> None:
        pass


def test_planted_extensions_learn_and_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    granularities.names(), estimators.names()
    planted = Granularity(
        name="pairs", title="Pairs of neurons", removal="All.", groups=("hidden",), lay=pairs
    )
    monkeypatch.setitem(granularities._items, "pairs", planted)
    monkeypatch.setitem(estimators._items, "softplus", Softplus())
    found = secateur.learn(
        secateur.load("digits_vit"),
        "digits/train",
        "70% params",
        sharing="pairs",
        gates="softplus",
        settings=LearnSettings(steps=8, batch_size=16, checks=1, observe=32),
        limit=96,
    )
    left = sum(p.numel() for p in found.model.parameters())
    assert 0.69 * 302_154 < left <= 0.7 * 302_154
    for branch, units in found.result.plan.units.items():
        kept = set(units["hidden"])
        assert branch.endswith("mlp") and kept
        assert all((neuron ^ 1) in kept for neuron in kept if isinstance(neuron, int))
