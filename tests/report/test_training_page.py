"""The page of a training run shows its curves as they were logged."""

from typing import Any

import pytest
from pydantic import ValidationError

from secateur.report import render
from secateur.report.record import FitRecord
from secateur.report.training_page import kept_figure, loss_figure, render_training, score_figure
from tests.report.test_render import HOSTILE, Page


def test_curves_are_the_log(training: dict[str, Any]) -> None:
    fit = FitRecord.model_validate(training["training"])
    loss, score = loss_figure(fit), score_figure(fit)
    assert loss is not None and score is not None
    total = loss.lines[0]
    assert total.x == tuple(row["step"] for row in training["training"]["history"])
    assert total.y == tuple(row["loss"] for row in training["training"]["history"])
    points = sum(len(line.x) for line in score.lines)
    assert points == len(training["training"]["scores"]) > 2
    assert score.rules[0].y == next(iter(fit.scores[0].values.values()))


def test_masks_show_their_cost_beside_the_schedule(training: dict[str, Any]) -> None:
    fit = training["training"]
    for number, row in enumerate(fit["history"]):
        row |= {"kept_percent": 90.0 - number, "target_percent": 80.0}
    found = FitRecord.model_validate(fit)
    kept, loss = kept_figure(found), loss_figure(found)
    assert kept is not None and loss is not None
    assert [line.name for line in kept.lines] == ["target percent", "kept percent"]
    assert kept.lines[1].y[:2] == (90.0, 89.0)
    assert all("percent" not in line.name for line in loss.lines)


def test_the_page_says_what_was_trained(training: dict[str, Any]) -> None:
    page = Page(render_training(training, "heal"))
    assert "timm:some_vit, healed" in page.text and "8 steps" in page.text
    assert "before training" in page.text and "after training" in page.text
    assert "Top-1, dense → now" in page.text and "secateur heal some" in page.text
    assert "Heal: loss" in page.text and "Heal: held-out score" in page.text


def test_without_accuracy_or_log(training: dict[str, Any]) -> None:
    training |= {"accuracy": None}
    training["training"] |= {"history": [], "scores": []}
    html = render_training(training, "train")
    assert "not measured" in html and '<div class="chart">' not in html


def test_learned_models_show_every_phase(
    measured: dict[str, Any], training: dict[str, Any]
) -> None:
    fit = training["training"]
    text = Page(render(measured | {"learning": {"phases": {"search": fit, "fine_tune": fit}}})).text
    assert "Search: loss" in text and "Fine tune: held-out score" in text


def test_hostile_text_stays_text(training: dict[str, Any]) -> None:
    clean = Page(render_training(training | {"reference": "timm:some_vit"}, "heal"))
    training |= {"model": HOSTILE, "reference": HOSTILE, "command": HOSTILE, "notes": [HOSTILE]}
    training["training"]["history"][0][HOSTILE] = 1.0
    page = Page(render_training(training, "heal"))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in clean.tags} | {"ul", "li"}


def test_what_is_no_record_is_refused(training: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="macs"):
        render_training(training | {"macs": None}, "heal")
