"""What held-out images say about the weights that are saved, and whose images they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

from secateur.errors import UserError
from secateur.registry import unknown
from secateur.training.loop import FitReport

JudgedOn = Literal["held_out", "eval_data"]
"""Images that judge weights during training: a share of those to learn, or those for evaluation."""

NEGLIGIBLE = 1e-3
"""A rise of a score by this much, in its unit, is no harm."""

ORIGINS = {
    "same": "among the calibration images of the cut, which flatter the model before healing",
    "source": "from the source of the calibration images of the cut, may be among them",
    "new": "new to the cut",
    "unknown": "not known whether the cut saw them",
    "evaluation": "those for evaluation, none of which is trained on",
    "training": "held out of the images to learn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Scores by `measure` (lower is better) before training and of the weights that are saved.

    `origin`, a key of `ORIGINS`, says whose images they were measured on.
    """

    measure: str
    before: float
    saved: float
    origin: str

    @property
    def worse(self) -> bool:
        """Whether training made the model worse on these images, by more than `NEGLIGIBLE`."""
        return self.saved > self.before + NEGLIGIBLE

    def note(self) -> str:
        """A warning about weights that are worse than those before training."""
        advice = "train longer, or with a lower learning rate"
        if self.origin in ("same", "source"):
            advice += ", and judge by images that the cut has not seen (--judge eval_data)"
        return (
            "The saved weights are worse than those before training on the images that judge them: "
            f"{self.measure.replace('_', ' ')} {self.before:.4g} → {self.saved:.4g} (images "
            f"{ORIGINS[self.origin]}); {advice}."
        )


def check_judge(judge: str, eval_images: object | None) -> None:
    """UserError for a judge that is none, or has no images."""
    if judge not in get_args(JudgedOn):
        raise UserError(unknown("judge", judge, list(get_args(JudgedOn))))
    if judge == "eval_data" and eval_images is None:
        raise UserError(
            "the images for evaluation are to judge the weights, but there are none; give some "
            "(--eval-data), or let held-out ones judge."
        )


def judgement(
    report: FitReport,
    source: str,
    fingerprint: str | None,
    earlier: Mapping[str, Any],
    judge: str,
    verb: str,
) -> Judgement | None:
    """How training changed the score of what is saved; None where nothing was judged.

    `source` and `fingerprint` are those of the images of this run; `earlier` is the provenance of
    the model before, whose `data` are the calibration images.
    """
    saved = report.saved
    if saved is None:
        return None
    before = report.scores[0]
    return Judgement(
        measure=next(iter(before.values)),
        before=before.value,
        saved=saved.value,
        origin=_origin(source, fingerprint, earlier, judge, verb),
    )


def _origin(
    source: str, fingerprint: str | None, earlier: Mapping[str, Any], judge: str, verb: str
) -> str:
    if judge == "eval_data":
        return "evaluation"
    if verb == "train":
        return "training"
    known = earlier.get("data")
    known = known if isinstance(known, Mapping) else {}
    if fingerprint is None or known.get("fingerprint") is None:
        return "unknown"
    if fingerprint == known["fingerprint"]:
        return "same"
    # WHY: a saved model keeps the name of a folder only.
    return "source" if known.get("source") in (source, PurePath(source).name) else "new"
