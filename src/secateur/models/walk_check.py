"""Check that a model is the walk that all else takes it for: embed, steps, head.

A subclass with a forward pass of its own has the modules of its family but is another function;
whatever would be measured or cut through the walk would be wrong without a sign of it.
"""

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.caches import evaluating
from secateur.models.family import Family
from secateur.models.host import host_of
from secateur.models.outputs import outputs_of
from secateur.models.runner import Runner
from secateur.models.statement import Statement
from secateur.models.types import Anatomy

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2}
"""Largest difference of outputs, as a share of the largest output; coarser types get 5 %."""


@torch.no_grad()
def require_walk(model: nn.Module) -> None:
    """UserError for a model whose own forward pass is not the walk through its steps, or that
    classifies every token.

    Both see two random images of the model's size, on its device and in its type, in evaluation
    mode. The model is left as it was; one without values (on the meta device) is not looked at.
    """
    host = host_of(model)
    family, anatomy = host.family, host.anatomy
    images_BCHW = noise_for(model, anatomy)
    if images_BCHW is None:
        return
    with evaluating(model):
        own = _outputs_of(model, images_BCHW)
        walk = Runner.of(host)
        walked = walk.finish(walk.embed(images_BCHW))
    if walked.shape != own.shape:
        shapes = f"shape {tuple(own.shape)}, not {tuple(walked.shape)}"
        _refuse(model, family, f"it gives outputs of {shapes}")
    if own.ndim > 2 and anatomy.num_classes:
        raise UserError(
            f"{_name(model)} gives the scores of its classes for every token, outputs of shape "
            f"{tuple(own.shape)}, where one row per image is counted and compared; let it pool "
            "(global_pool='token' or 'avg'), or take off its classifier (num_classes=0)."
        )
    largest = float(own.abs().max()) if own.numel() else 0.0
    apart = float((own - walked).abs().nan_to_num(0.0).max()) if own.numel() else 0.0
    if apart > TOLERANCES.get(own.dtype, 0.05) * max(largest, 1e-6):
        _refuse(model, family, f"on two random images their outputs differ by {apart:.2g}")


def bind_(model: nn.Module, statement: Statement) -> None:
    """Let a model, and copies of it, be read by a statement of its own.

    UserError for a statement with gaps, and one that is not the model's forward pass.
    """
    family = Family(statement)
    before = model.__dict__.get("secateur_family")
    model.__dict__["secateur_family"] = family
    try:
        require_walk(model)
    except Exception as error:
        model.__dict__["secateur_family"] = before
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the statement of family '{family.name}' cannot be followed ({error}); fill in "
            "what it lacks."
        ) from error


def noise_for(model: nn.Module, anatomy: Anatomy) -> Tensor | None:
    """Two random images (2, C, H, W) of the model's size, type and device; None on meta."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None or like.is_meta:
        return None
    noise = torch.randn(2, *anatomy.input_size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _outputs_of(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    try:
        return outputs_of(model(images_BCHW))
    except (TypeError, ValueError, AssertionError, IndexError, KeyError, AttributeError) as error:
        raise UserError(
            f"the forward pass of {_name(model)} fails on images of shape "
            f"{tuple(images_BCHW.shape)}: {error}"
        ) from error


def _refuse(model: nn.Module, family: Family, how: str) -> None:
    raise UserError(
        f"the forward pass of {_name(model)} is not that of {family.title}, so nothing would be "
        f"measured or cut correctly: {how}; give a model with the family's own forward pass, or "
        "register its family."
    )


def _name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
