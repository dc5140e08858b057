"""A teacher: any model that classifies the same classes, shown the student's images in its own way.

Legend: B batch, C classes, H height, W width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.models.family import read
from secateur.models.outputs import outputs_of
from secateur.models.runner import Runner, Trace


def logits_of(output: object) -> Tensor:
    """The logits (B, C), or features (B, T, C), in what a model returns."""
    found = outputs_of(output)
    if found.ndim not in (2, 3):
        raise UserError(
            f"a model returns outputs of shape {tuple(found.shape)} where logits [images, classes] "
            "were expected; give a model with a classification head."
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """From images as one model wants them to the same images as another wants them."""

    before: Preprocessing
    after: Preprocessing

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Normalise anew and scale; nothing at all where both want the same."""
        one, other = self.before, self.after
        if (one.mean, one.std) != (other.mean, other.std):
            columns = [images_BCHW.new_tensor(v)[:, None, None] for v in (one.mean, one.std)]
            images_BCHW = images_BCHW * columns[1] + columns[0]
            columns = [images_BCHW.new_tensor(v)[:, None, None] for v in (other.mean, other.std)]
            images_BCHW = (images_BCHW - columns[0]) / columns[1]
        size = other.input_size[1:]
        if images_BCHW.shape[-2:] != size:
            images_BCHW = F.interpolate(
                images_BCHW, size, mode="bicubic", antialias=True, align_corners=False
            )
        return images_BCHW


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A frozen model in eval mode that sees images through `view`, as they are without one.

    `runner` is None where only its outputs are known; `channels` are those of its stream that a
    narrower student has too, None for all.
    """

    model: nn.Module
    view: View | None
    runner: Runner | None
    channels: Tensor | None = None
    mismatch: str = ""

    def _take(self, images_BCHW: Tensor) -> Tensor:
        like = next(self.model.parameters())
        if like.device != images_BCHW.device:
            self.model.to(images_BCHW.device)
        shown_BCHW = images_BCHW if self.view is None else self.view(images_BCHW)
        return shown_BCHW.to(dtype=like.dtype)

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """What it makes of the student's images: logits (B, C)."""
        return logits_of(self.model(self._take(images_BCHW)))

    @torch.no_grad()
    def see(self, images_BCHW: Tensor) -> Trace:
        """The same with its streams; only where it has a `runner`."""
        assert self.runner is not None
        return self.runner.trace(self._take(images_BCHW), self.channels)


def teacher_for(student: nn.Module, model: nn.Module) -> Teacher:
    """A teacher for a student; freezes it.

    Streams are compared only where the teacher has every branch of the student under the same
    name, and tokens and width agree; `mismatch` says what does not. UserError for other classes
    or channels.
    """
    own = read(student)
    view = View(before=Preprocessing.of(student), after=Preprocessing.of(model))
    if view.before.input_size[0] != view.after.input_size[0]:
        raise UserError(
            f"the reference takes images of {view.after.input_size[0]} channels, the model "
            f"{view.before.input_size[0]}; give a reference for the same kind of images."
        )
    model.eval().requires_grad_(False)
    runner, reason, classes = None, "", 0
    try:
        theirs = read(model)
    except UserError as error:
        reason, classes = str(error), int(getattr(model, "num_classes", 0))
    else:
        classes = theirs.num_classes
        known = {branch.id: branch.kind for branch in theirs.branches}
        missing = [b.id for b in own.branches if known.get(b.id) != b.kind]
        if missing:
            reason = f"it has no branch {missing[0]}"
        for what in ("tokens", "width", "prefix_tokens"):
            mine, other = getattr(own, what), getattr(theirs, what)
            if mine != other:
                reason = f"its {what.replace('_', ' ')}: {other}, the model's: {mine}"
        runner = None if reason else Runner.of(model)
    if classes and own.num_classes and classes != own.num_classes:
        raise UserError(
            f"the reference has {classes} classes, the model {own.num_classes}; give a reference "
            "with the same classes."
        )
    return Teacher(model=model, view=view, runner=runner, mismatch=reason)
