"""All steps offline, on the bundled model and digits: prune, save, load and compare."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.measurement.accuracy import Accuracy
from secateur.measurement.latency import using_threads
from secateur.request.takes import takes
from secateur.storage.directories.existing import mend_model
from secateur.storage.save import check_out
from secateur.storage.spec import read_spec
from secateur.verbs.evaluate import score
from secateur.verbs.load import load, open_data
from secateur.verbs.prune import prune
from secateur.verbs.requests import DemoRequest
from secateur.verbs.result import Result

MODEL, BUDGET, COMMAND = "digits_vit", "50% macs", "secateur demo"
SAME = 1e-5
"""Largest difference between the outputs of the saved and of the loaded model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The pruning run, the accuracy of its model after loading, and the model that was replaced."""

    result: Result
    reloaded: Accuracy
    largest_difference: float
    replaced: str | None = None


@takes(DemoRequest)
def demo(request: DemoRequest) -> Demo:
    """Prune the bundled digits model to half its MACs, save it in `out` and load it again.

    `limit` training digits calibrate it, `test_limit` (None: all) test digits score it, on
    `device`. The model of an earlier demo in `out` is replaced, any other only with `overwrite`.
    Raises UserError when `out` cannot be written, RuntimeError when the outputs of the loaded model
    differ from those of the saved one.
    """
    out, device, progress = Path(request.out), request.device, request.progress
    overwrite = request.overwrite or _is_demo(out)
    check_out(out, overwrite=overwrite)
    # WHY one thread: for so small a model more of them only wait for each other.
    with using_threads(1):
        model = load(MODEL, device=device)
        scored, _ = open_data(model, "digits/test", limit=request.test_limit)
        result = prune(
            model,
            "digits/train",
            BUDGET,
            preset=request.preset,
            limit=request.limit,
            eval_images=scored,
            latency=request.latency,
            progress=progress,
        )
        result.command = COMMAND
        replaced = result.save(out, overwrite=overwrite)
        again = load(out, device=device)
        reloaded = score(again, scored, "evaluate again", progress, reference=model)
        difference = largest_difference(result.model, again, scored)
        if reloaded != result.accuracy or difference > SAME:
            raise RuntimeError(
                f"the model loaded from {out} is not the one saved: outputs differ by "
                f"{difference:.2g}"
            )
        return Demo(
            result=result,
            reloaded=reloaded,
            largest_difference=difference,
            replaced=replaced,
        )


def _is_demo(out: Path) -> bool:
    """Whether the model in `out` is the unchanged result of a demo."""
    mend_model(out)
    try:
        known = read_spec(out).provenance
    except UserError:
        return False
    return known.get("command") == COMMAND and not {"heal", "train", "learning"} & set(known)


@torch.inference_mode()
def largest_difference(one: nn.Module, other: nn.Module, images: Batches) -> float:
    """The largest absolute difference between the outputs of two models."""
    return max(
        float((one(batch.images_BCHW) - other(batch.images_BCHW)).abs().max()) for batch in images
    )
