"""What a pruning run may be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from secateur.progress import Progress
from secateur.request.parts import ImagesPart, UnitsPart
from secateur.request.say import IMAGES, Say, shipped
from secateur.request.text import all_if_zero, text

LIMIT = 512
"""Calibration images taken from a path or data string unless told otherwise."""
DEFAULT = "spectral"
"""The recommended preset."""
PRUNING = "Pruning"


@dataclass(frozen=True, kw_only=True)
class PruneRequest(UnitsPart, ImagesPart):
    """A pruning run in full. `groups` None: those of the budget, else those of the preset.

    A `recipe`, a name or a file, stands in place of a budget; give one of the two. `limit`,
    `workers` and `skip_unreadable` concern images given as a path or data string.
    """

    budget: Annotated[
        str | None,
        Say(
            "What is kept: '50% macs', '3M params', '2.0 GMACs', '50% qk, 70% hidden', '6.5 ms', "
            "'2x faster'; or removed: 'drop 4 attention', 'drop 25% blocks'; or 'lossless'."
        ),
    ] = field(default=None, kw_only=False)
    recipe: Annotated[
        str | Path | None,
        Say(
            "Sizes layer by layer instead of a budget: YAML, JSON, or "
            f"{shipped('recipes', '.yaml')}.",
            metavar="FILE_OR_NAME",
            read=text,
        ),
    ] = None
    preset: Annotated[
        str,
        Say(
            f"A method: {shipped('presets', '.yaml')}, or a YAML file. Without it, the "
            "recommended one.",
            PRUNING,
            shown=False,
        ),
    ] = DEFAULT
    repair: Annotated[
        str | None,
        Say("Of what is left: none, mean, least_squares; else the preset's.", PRUNING),
    ] = None
    replacement: Annotated[
        str | None,
        Say(
            "For dropped layers: nothing, mean, scalar, affine, linear, merge; else the preset's.",
            PRUNING,
        ),
    ] = None
    loss: Annotated[
        str | None,
        Say(
            "Between outputs: kl, mse, bce, cosine; else as suits the head.",
            PRUNING,
        ),
    ] = None
    polish: Annotated[
        str | None,
        Say(
            "Train briefly after the cut, without labels: '5min', '30s', '200 steps'. Off unless "
            "given.",
            PRUNING,
            metavar="TIME",
        ),
    ] = None
    effort: Annotated[
        str,
        Say("Of the preset spectral: how many sizes it measures, quick or full.", PRUNING),
    ] = "full"
    allocation: Annotated[
        str | None,
        Say("Of the budget: uniform, ranking, knapsack; else the preset's.", PRUNING),
    ] = None
    limit: Annotated[
        int | None, Say("Calibration images to use; 0 for all.", IMAGES, read=all_if_zero)
    ] = LIMIT
    eval_images: Annotated[
        object | None,
        Say(
            "Labelled images on which dense and pruned model are evaluated.",
            IMAGES,
            flag="--eval-data",
            read=text,
        ),
    ] = None
    latency: Annotated[
        bool,
        Say("Time dense and pruned model in turns.", flag="--latency/--no-latency", default=True),
    ] = False
    progress: Progress | None = None

    @property
    def goal(self) -> str:
        """The budget, or which recipe stands in its place."""
        return f"recipe {self.recipe}" if self.budget is None else self.budget
