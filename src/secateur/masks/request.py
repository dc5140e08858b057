"""What a run of learning masks may be asked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.request.parts import TrainingPart, UnitsPart
from secateur.request.say import TRAINING, Say, shipped

if TYPE_CHECKING:
    from torch import nn

    from secateur.masks.settings import LearnSettings

MASKS = "Masks"


@dataclass(frozen=True, kw_only=True)
class LearnRequest(UnitsPart, TrainingPart):
    """A run in full. `groups` None: those of the sharing. `criterion` "none": all units alike."""

    budget: Annotated[
        str,
        Say("What is kept of the whole model: '30% params', '2.0 GMACs', '6.5 ms', '2x faster'."),
    ] = field(kw_only=False)
    sharing: Annotated[
        str, Say(f"Which units share a mask: {shipped('masks/granularities', '.py')}.", MASKS)
    ] = "common_count"
    gates: Annotated[
        str, Say(f"How a score becomes a mask: {shipped('masks/estimators', '.py')}.", MASKS)
    ] = "straight_through"
    criterion: Annotated[
        str,
        Say("In which order scores start: spectral for its plans, a criterion, or none.", MASKS),
    ] = "spectral"
    loss: Annotated[
        str | None,
        Say(
            "Between outputs: kl, mse, bce, cosine; else as suits the head.",
            TRAINING,
        ),
    ] = None
    latency: Annotated[
        bool,
        Say("Time dense and smaller model in turns.", TRAINING, flag="--latency/--no-latency"),
    ] = False
    reference: "nn.Module | str | Path | None" = None
    settings: "LearnSettings | None" = None
    on_note: Callable[[str], None] | None = None
