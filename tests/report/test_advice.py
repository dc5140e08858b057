"""The accuracy card and the sentence under it say what to do about the loss that was measured."""

from typing import Any

import pytest

from secateur.report import render
from secateur.report.advice import advise, after_training, difference, heal_command
from secateur.report.record import AccuracyPair, AccuracyRecord, RunRecord
from tests.report.test_render import Page


def side(top1: float | None, change_stderr: float | None = None, **more: Any) -> AccuracyRecord:
    stderr = None if top1 is None else 1.5
    given = {"top5": None, "n": 900, "stderr": stderr, "agreement": None, "kl": None, **more}
    return AccuracyRecord(top1=top1, change_stderr=change_stderr, **given)


@pytest.mark.parametrize(
    ("pruned", "error", "change"),
    [(79.5, 0.4, "worse"), (79.7, 0.4, "even"), (80.5, 0.4, "better"), (78.0, None, "even")],
)
def test_a_difference_counts_beyond_its_standard_error(
    pruned: float, error: float | None, change: str
) -> None:
    found = difference(AccuracyPair(dense=side(80.0), pruned=side(pruned, error)))
    assert found is not None and found.change == change
    assert found.paired is (error is not None)
    assert found.stderr == pytest.approx(error or 1.5 * 2**0.5)


@pytest.mark.parametrize(
    ("pruned", "images", "words", "heals"),
    [
        (79.8, 512, "Nothing to do", False),
        (77.0, 512, "Healing recovers accuracy", True),
        (77.0, 64, "Prune again with more than 64", True),
        (60.0, 64, "64\u00a0calibration images are few", True),
    ],
)
def test_advice_follows_the_loss_and_the_images(
    measured: dict[str, Any], pruned: float, images: int, words: str, heals: bool
) -> None:
    run = RunRecord.model_validate(
        measured
        | {
            "accuracy": {"dense": side(80.0), "pruned": side(pruned, 0.5)},
            "data": measured["data"] | {"images": images},
            "command": "secateur prune m --data 'my images' --budget '50% qk' --out=small/",
        }
    )
    advice = advise(run)
    assert words in advice.sentence
    command = "secateur heal small/ --data 'my images' --out small-healed"
    assert advice.command == (command if heals else None)


def test_advice_without_labels(measured: dict[str, Any]) -> None:
    accuracy = measured["accuracy"] | {"dense": side(None), "pruned": side(None, agreement=80.0)}
    low = advise(RunRecord.model_validate(measured | {"accuracy": accuracy}))
    assert "80.0\u00a0% of the predictions" in low.sentence and low.command is not None
    accuracy |= {"pruned": side(None, agreement=99.0)}
    assert advise(RunRecord.model_validate(measured | {"accuracy": accuracy})).command is None
    nothing = advise(RunRecord.model_validate(measured | {"accuracy": {}}))
    assert "--eval-data" in nothing.sentence


def test_the_command_names_what_it_knows() -> None:
    assert heal_command(None) == "secateur heal DIR --data IMAGES --out DIR-healed"
    assert heal_command("secateur 'broken") == heal_command(None)
    assert heal_command("secateur prune m --data a --out b", None).split("--data ")[1] == (
        "IMAGES --out b-healed"
    )


def test_after_healing_the_next_step_depends_on_the_curve() -> None:
    lost = AccuracyPair(dense=side(80.0), pruned=side(75.0, 0.5))
    assert "more --epochs" in after_training("heal", lost, 95, 100).sentence
    assert "more images" in after_training("heal", lost, 30, 100).sentence
    same = AccuracyPair(dense=side(80.0), pruned=side(80.1, 0.5))
    assert "Nothing to do" in after_training("heal", same, 95, 100).sentence
    assert "secateur prune" in after_training("train", same, 95, 100).sentence


def test_the_card_shows_the_difference(measured: dict[str, Any]) -> None:
    measured["accuracy"]["pruned"]["change_stderr"] = 1.1
    html = render(measured)
    assert '<div class="tile worse">' in html
    text = Page(html).text
    assert "−6.5 points" in text and "± 1.1 paired standard error, 650 images" in text
    assert "secateur heal" in text
    measured["accuracy"]["pruned"] |= {"top1": 75.0}
    html = render(measured)
    assert '<div class="tile even">' in html and "secateur heal" not in html
