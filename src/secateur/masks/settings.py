"""How a run with learned masks is divided: dense warm-up, search, fine-tuning of what is left."""

from typing import Literal, get_args

from pydantic import Field

from secateur.masks.controller import ControllerSettings
from secateur.masks.strategy import WaySettings
from secateur.training.distillation.objectives import DistilSettings
from secateur.training.heal_and_train import FineTuneSettings
from secateur.training.settings import Count, Positive, Share, TrainSettings

Phase = Literal["warmup", "search", "tune"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class LearnSettings(FineTuneSettings):
    """A whole run; `steps`, `epochs` or `time` are those of all phases together.

    `warmup_share` of it trains the dense model (0 for a pretrained one), `search_share` learns the
    masks with the weights (0: masks are those of the criterion, one-shot), and the rest fine-tunes
    the smaller model. In the search the learning rate is multiplied by `search_rate`. `axes` says
    in which axes query/key and value dims are masked: those that the model has, or the principal
    ones, to which the dense model is turned first without a change of its outputs. `search` is the
    way in which masks are searched; where it holds them, and in the projection at the end, what
    stays takes over from what closes (`takeover`). After removal writers are fitted once more,
    front to back, so that the stream is the dense one (`refit`). `observe` images give axes,
    criterion, takeover and refit their statistics. `ascent`, `damping`, `ramp` and `travel` are
    those of the search's controller and scores, see docs/methods/learned_masks.md.
    """

    warmup_share: Share = 0.0
    search: str = "projected"
    takeover: bool = True
    refit: bool = True
    search_share: Share = 0.25
    search_rate: Positive = 0.5
    axes: Literal["given", "principal"] = "principal"
    observe: Count = 512
    ascent: Positive = 15.0
    damping: float = Field(default=10.0, ge=0)
    ramp: Share = 0.6
    travel: Positive | None = None
    lasso: Positive = 0.3
    distil: DistilSettings = DistilSettings(
        logit_weight=0.5, label_weight=0.5, temperature=2.0, token_weight=0.0, layerwise=0.0
    )

    def way(self) -> WaySettings:
        """The settings of the search."""
        controller = ControllerSettings(ascent=self.ascent, damping=self.damping, ramp=self.ramp)
        return WaySettings(controller=controller, travel=self.travel, lasso=self.lasso)


def phases(settings: LearnSettings, images: int) -> dict[Phase, TrainSettings]:
    """The settings of every phase that has a share of the run, for that many images.

    The search has no running average and no choice among its states: masks belong to the last.
    """
    shares: dict[Phase, float] = {
        "warmup": settings.warmup_share,
        "search": settings.search_share,
    }
    shares["tune"] = 1 - sum(shares.values())
    whole = settings.length(images)
    found: dict[Phase, TrainSettings] = {}
    done = 0.0
    for phase, share in shares.items():
        start, done = done, done + share
        length: dict[str, object] = {"steps": None, "epochs": None, "time": None}
        if whole.steps is None:
            length["time"] = f"{share * (whole.seconds or 0):.3f}s"
        else:
            length["steps"] = round(done * whole.steps) - round(start * whole.steps)
        if share > 1e-9 and length["steps"] != 0:
            found[phase] = _plain(settings, length | _changes(settings, phase))
    return found


def _changes(settings: LearnSettings, phase: Phase) -> dict[str, object]:
    if phase != "search":
        return {}
    given = settings.optimizer
    slower = given.model_copy(update={"learning_rate": given.learning_rate * settings.search_rate})
    return {"optimizer": slower, "ema": None, "checks": 0, "keep": "last"}


def _plain(settings: LearnSettings, changes: dict[str, object]) -> TrainSettings:
    values = {name: getattr(settings, name) for name in TrainSettings.model_fields}
    return TrainSettings.model_validate(values | changes)
