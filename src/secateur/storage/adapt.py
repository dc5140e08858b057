"""A named model made ready to be trained on other classes or images of another size."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from secateur.errors import UserError
from secateur.storage.identify import identify
from secateur.storage.load import load
from secateur.storage.untrusted.checkpoints import read_checkpoint
from secateur.storage.weights import Weights, refuse_not_finite

TIMM = "timm:"


def load_to_train(
    source: str,
    *,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> nn.Module:
    """A model in eval mode whose weights are a start, not the end.

    Of a model of timm by name, weights are taken over as timm does: a head for other classes
    begins afresh, position tables are resampled to another image size. Other models are loaded as
    they are. What begins afresh follows from the seed. Raises UserError for unknown names, sizes
    that cannot be built and weights that do not belong to the architecture.
    """
    if not source.startswith(TIMM) or (checkpoint is None and pretrained and num_classes is None):
        given = checkpoint if pretrained else None
        start = None if pretrained or not source.startswith(TIMM) else False
        return load(
            source,
            checkpoint=given,
            num_classes=num_classes,
            img_size=img_size,
            pretrained=start,
        )
    # WHY: says in a sentence what is wrong with the name or the sizes, before any download.
    load(source, pretrained=False, num_classes=num_classes, img_size=img_size, device="cpu")
    sizes = {"num_classes": num_classes, "img_size": img_size}
    wanted: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
    name = source.removeprefix(TIMM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not pretrained:
            model = timm.create_model(name, pretrained=False, **wanted)
        else:
            model = _adapted(name, checkpoint, wanted)
    if pretrained:
        refuse_not_finite(model.state_dict(), source if checkpoint is None else str(checkpoint))
    model.eval()
    model.__dict__.update(secateur_base=identify(model, compare_outputs=False))
    return model


def _adapted(name: str, checkpoint: Path | None, wanted: dict[str, Any]) -> nn.Module:
    """The weights of a file, or the library's own, put into a model of the wanted sizes."""
    overlay: dict[str, object] = {}
    tensors: Weights = {}
    if checkpoint is not None:
        tensors = read_checkpoint(checkpoint)
        overlay = {"state_dict": tensors}
        # WHY: timm takes the head over where this is the number of classes that is wanted.
        if (head := tensors.get("head.weight")) is not None:
            overlay["num_classes"] = head.shape[0]
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **wanted
        )
    except Exception as error:
        # WHY: the download can fail in the ways of several network libraries.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        where = f"the weights of timm:{name}" if checkpoint is None else str(checkpoint)
        raise UserError(
            f"{where} cannot be the start of timm:{name} with {wanted} ({first}); give a checkpoint"
            " of this architecture, or train from scratch."
        ) from error
    if checkpoint is not None:
        _refuse_foreign(model, tensors, checkpoint, name)
    config = {**model.pretrained_cfg, "state_dict": None}  # type: ignore[dict-item]
    model.__dict__.update(pretrained_cfg=config, default_cfg=config)
    return model


def _refuse_foreign(model: nn.Module, tensors: Weights, path: Path, name: str) -> None:
    """UserError where weights other than the head's have other names: timm loads what it knows."""
    config = getattr(model, "pretrained_cfg", None) or {}
    head = str(config.get("classifier") or "head")
    wanted = {key for key in model.state_dict() if not key.startswith(f"{head}.")}
    odd = sorted(wanted.symmetric_difference(k for k in tensors if not k.startswith(f"{head}.")))
    if odd:
        what = "lacks" if odd[0] in wanted else "has an unknown"
        raise UserError(
            f"{path} cannot be the start of timm:{name}: it {what} '{odd[0]}'; give a checkpoint "
            "of this architecture, or train from scratch."
        )
