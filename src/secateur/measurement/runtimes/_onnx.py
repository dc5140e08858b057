"""From a model to an ONNX file: the way to every runtime that is not torch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from secateur.errors import UserError
from secateur.measurement.runtimes._quiet import quiet
from secateur.models.caches import evaluating
from secateur.models.outputs import outputs_of

PACKAGES = ("onnx", "onnxscript")
INPUT, OUTPUT, FEATURES, BATCH = "images", "logits", "features", "batch"


def traced(model: nn.Module, images_BCHW: Tensor) -> tuple[ExportedProgram, bool]:
    """The graph of `model` in evaluation mode, and whether it takes any number of images.

    Where the model's code depends on the batch size, the graph takes as many as `images_BCHW`.
    """
    with evaluating(model), torch.no_grad(), quiet():
        # WHY: torch takes a size of one for a constant.
        several = images_BCHW if len(images_BCHW) > 1 else images_BCHW.repeat(2, 1, 1, 1)
        try:
            sizes = ({0: Dim(BATCH, min=1)},)
            return torch.export.export(model, (several,), dynamic_shapes=sizes), True
        except RuntimeError:
            return torch.export.export(model, (images_BCHW,)), False


def to_onnx(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
    """Write `model` to an ONNX file and return whether it takes any number of images.

    Input and output are called "images" and "logits", the first output of a model that gives
    features of tokens "features". Weights beyond the 2 GB that a file can
    hold go to a second file beside it, called like it with ".data" added. UserError for
    types other than fp32 and fp16.
    """
    if images_BCHW.dtype not in (torch.float32, torch.float16):
        raise UserError(
            f"a model in {images_BCHW.dtype} cannot be run outside torch; convert it with "
            "model.float() first."
        )
    program, dynamic = traced(model, images_BCHW)
    with evaluating(model), torch.no_grad():
        rows = outputs_of(model(images_BCHW)).ndim == 2
    with torch.no_grad(), quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT if rows else FEATURES],
            dynamic_shapes=({0: BATCH},) if dynamic else None,
        )
        if converted is None:
            raise RuntimeError("torch.onnx.export returned no model")
        converted.save(path, external_data=False)
    return dynamic


def joined(first: str, outputs: Sequence[Tensor]) -> Tensor:
    """What `outputs_of` makes of the outputs of a model, from those of its file."""
    return outputs[0] if first == OUTPUT else outputs_of(tuple(outputs))


def shared_onnx(model: nn.Module, images_BCHW: Tensor, folder: Path) -> Path:
    """The model's ONNX file in `folder`, written there unless it is there already."""
    any_batch, own = folder / "any_batch.onnx", folder / f"batch_{len(images_BCHW)}.onnx"
    for path in (any_batch, own):
        if path.exists():
            return path
    path = any_batch if to_onnx(model, images_BCHW, own) else own
    return own.rename(path)
