"""A narrower stream, learned with all other masks."""

from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import UserError
from secateur.masks.request import LearnRequest
from secateur.masks.settings import LearnSettings
from secateur.masks.task import check_learning, resolve_learn
from secateur.models.family import read
from secateur.models.host import host_of
from secateur.training.distillation.objectives import DistilSettings
from secateur.verbs.learn import learn

SHORT = {"steps": 12, "batch_size": 16, "checks": 1, "observe": 64, "held_out": 0.1}


@pytest.mark.parametrize("gates", ["straight_through", "hard_concrete"])
def test_the_stream_becomes_narrower_and_loads_again(gates: str, tmp_path: Path) -> None:
    found = learn(
        secateur.load("digits_vit"),
        "digits/train",
        "15% params",
        sharing="mixed",
        gates=gates,
        settings=LearnSettings(**SHORT),
        limit=128,
    )
    width = read(found.model).width
    assert 8 <= width < 64
    left = sum(p.numel() for p in found.model.parameters())
    assert 0.145 * 302_154 < left <= 0.15 * 302_154
    assert found.compression.masked == found.compression.left
    found.save(tmp_path / "small")
    again = secateur.load(tmp_path / "small")
    x = torch.randn(2, 1, 8, 8)
    assert read(again).width == width
    assert torch.allclose(again(x), found.model(x), atol=1e-6)


def test_the_stream_alone_can_be_learned() -> None:
    found = learn(
        secateur.load("digits_vit"),
        "digits/train",
        "60% macs",
        sharing="common_count",
        groups=["width"],
        settings=LearnSettings(**SHORT),
        limit=96,
    )
    before = read(secateur.load("digits_vit"))
    assert found.result.plan.shapes == before.shapes
    assert found.result.cost.macs <= 0.6 * before.cost().macs


def test_streams_that_cannot_be_compared_are_refused_before_training() -> None:
    settings = LearnSettings(**SHORT, distil=DistilSettings(label_weight=1.0))
    with pytest.raises(UserError, match="cannot be compared with the dense one"):
        learn(
            secateur.load("digits_vit"),
            "digits/train",
            "50% params",
            sharing="mixed",
            settings=settings,
            limit=96,
        )


def test_a_budget_in_ms_leaves_the_stream_alone() -> None:
    with pytest.raises(UserError, match="leave it out"):
        learn(
            secateur.load("digits_vit"),
            "digits/train",
            "50% ms",
            groups=["width", "hidden"],
            settings=LearnSettings(**SHORT),
            limit=96,
        )


@pytest.mark.parametrize(("budget", "narrows"), [("50% params", True), ("50% ms", False)])
def test_mixed_gates_the_stream_where_the_budget_can_weigh_it(budget: str, narrows: bool) -> None:
    model = secateur.load("digits_vit")
    asked = LearnRequest(budget=budget, sharing="mixed")
    found = resolve_learn(check_learning(asked), host_of(model))
    assert ("width" in found.task.groups) is narrows
    assert any(gate.group == "width" for gate in found.gates) is narrows
