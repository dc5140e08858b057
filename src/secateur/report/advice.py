"""The next step for a result, from its measured loss of accuracy, as one sentence and a command."""

import shlex
from dataclasses import dataclass
from typing import Literal

from secateur.report.record import AccuracyPair, RunRecord
from secateur.report.words import NBSP, percent, plural

FEW = 256
"""Calibration images below which more of them usually help."""
LARGE = 5.0
"""Points of top-1 from which on calibration images alone do not close the gap."""
LOW_AGREEMENT = 90.0
"""Percent of equal predictions below which healing is advised where labels are missing."""

Change = Literal["worse", "better", "even"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Top-1 of the smaller model minus that of the dense one, in points, with its standard error.

    `paired` says whether the error is that of the differences on the same images; otherwise it is
    that of two separate samples, which is larger.
    """

    points: float
    stderr: float
    paired: bool

    @property
    def change(self) -> Change:
        """Whether the difference is beyond its standard error, and in which direction."""
        if abs(self.points) <= self.stderr:
            return "even"
        return "worse" if self.points < 0 else "better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One sentence, and a command where there is one to give."""

    sentence: str
    command: str | None = None


def difference(accuracy: AccuracyPair) -> Difference | None:
    """What top-1 changed by; None where it was not measured on both models."""
    dense, pruned = accuracy.dense, accuracy.pruned
    if dense is None or pruned is None or dense.top1 is None or pruned.top1 is None:
        return None
    error, paired = pruned.change_stderr, pruned.change_stderr is not None
    if error is None:
        error = ((dense.stderr or 0.0) ** 2 + (pruned.stderr or 0.0) ** 2) ** 0.5
    return Difference(points=pruned.top1 - dense.top1, stderr=error, paired=paired)


def advise(run: RunRecord) -> Advice:
    """The next step after pruning or learning masks."""
    found, few = difference(run.accuracy), run.data.images < FEW
    images = plural(run.data.images, "calibration image")
    if found is None:
        return _without_labels(run)
    if found.change != "worse":
        return Advice(sentence="Nothing to do: no loss of accuracy beyond its standard error.")
    if few and found.points > -LARGE:
        return Advice(
            sentence=f"Prune again with more than {images} (512 is usual); if accuracy still "
            "drops, heal the model:",
            command=heal_command(run.command, run.data.fingerprint),
        )
    more = f", and {images} are few: 512 are usual" if few else ""
    return Advice(
        sentence=f"Healing recovers accuracy by distillation from the dense model{more}:",
        command=heal_command(run.command, run.data.fingerprint),
    )


def _without_labels(run: RunRecord) -> Advice:
    pruned = run.accuracy.pruned
    agreement = None if pruned is None else pruned.agreement
    if agreement is None:
        return Advice(sentence="Give --eval-data to measure the loss of accuracy.")
    if agreement >= LOW_AGREEMENT:
        return Advice(
            sentence=f"Nothing to do: {percent(agreement / 100)} of the predictions are the same."
        )
    return Advice(
        sentence=f"Only {percent(agreement / 100)} of the predictions are the same; healing "
        "recovers them by distillation from the dense model:",
        command=heal_command(run.command, run.data.fingerprint),
    )


def heal_command(command: str | None, fingerprint: str | None = "") -> str:
    """The command that heals the model which `command` saved, on the same images.

    Names stand in for what the command does not tell, as for a run in Python.
    """
    out = _option(command, "--out") or "DIR"
    images = (_option(command, "--data") if fingerprint is not None else None) or "IMAGES"
    parts = ["--data", images, "--out", f"{out.rstrip('/')}-healed"]
    return f"secateur heal {shlex.quote(out)} {shlex.join(parts)}"


def after_training(verb: str, accuracy: AccuracyPair, best: int, steps: int) -> Advice:
    """The next step after healing or fine-tuning."""
    found = difference(accuracy)
    if verb != "heal":
        return Advice(sentence="Next: make the model smaller with secateur prune.")
    if found is None:
        return Advice(sentence="Give --eval-data to measure accuracy before and after healing.")
    if found.change != "worse":
        return Advice(sentence="Nothing to do: no loss of accuracy beyond its standard error.")
    if best >= 0.8 * steps:
        return Advice(
            sentence="The held-out score was still improving at the end: heal for more --epochs."
        )
    return Advice(
        sentence="The held-out score stopped improving before the end: more images help more than "
        "more steps."
    )


def error_words(found: Difference, images: int) -> str:
    """The standard error of a difference, for the line below it."""
    kind = "paired standard error" if found.paired else "standard error"
    return f"±{NBSP}{found.stderr:.1f} {kind}, {plural(images, 'image')}"


def _option(command: str | None, name: str) -> str | None:
    """The value of an option in a command line."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        return None
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None
