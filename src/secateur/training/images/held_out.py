"""Images kept apart from training, to choose weights by.

Legend: B batch, C classes, H height, W width, n images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from secateur.data.images import ImageSet
from secateur.errors import UserError
from secateur.statistics.divergence import LossName, per_image, spread
from secateur.training.distillation.teacher import Teacher, logits_of
from secateur.training.images.sampler import Items
from secateur.training.judging import Sums

MOST = 2000
"""Held-out images; more make the choice of weights no better."""


def hold_out(images: object, count: int, share: float) -> tuple[object, object | None]:
    """Images to train on and images held out: every so many-th, at most `MOST`.

    Which ones, follows from number and share alone. Nothing is held out for a share of 0. Raises
    UserError when too few images are there to hold some out.
    """
    if share == 0:
        return images, None
    held = min(MOST, round(share * count))
    if not 0 < held < count:
        raise UserError(
            f"{count} images are too few to hold out {100 * share:g} % of them; give more, or set "
            "held_out to 0."
        )
    chosen = {index * count // held for index in range(held)}
    return (
        part_of(images, [i for i in range(count) if i not in chosen]),
        part_of(images, sorted(chosen)),
    )


def part_of(images: object, indices: Sequence[int]) -> object:
    """Some of the images, in this order, as an object of the same kind."""
    if isinstance(images, ImageSet):
        return replace(
            images,
            names=tuple(images.names[i] for i in indices),
            labels=tuple(images.labels[i] for i in indices),
            read=partial(_read_part, images.read, indices),
        )
    if isinstance(images, Tensor):
        return images[list(indices)]
    if isinstance(images, tuple):
        return tuple(part[list(indices)] for part in images)
    assert isinstance(images, Dataset)
    return Subset(images, indices)


def _read_part(read: Callable[[int], bytes], indices: Sequence[int], index: int) -> bytes:
    return read(indices[index])


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """Judges a model on held-out images: by its errors with labels, else by its teacher.

    With `labels`: `error`, the share of wrong predictions in percent, then `cross_entropy`. With a
    teacher: how far the outputs are from its own by `loss`, which names the measure: `kl`,
    KL(teacher ‖ model) in nats, or see `secateur.statistics.divergence.per_image`; squared errors
    (`mse`) are a share of the variance of the teacher's outputs. What is named first counts, labels
    before teacher.
    """

    items: Items
    labels: bool
    teacher: Teacher | None
    batch_size: int = 64
    workers: int = 0
    loss: LossName = "kl"
    _wanted: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def __call__(self, model: nn.Module, part: int, parts: int) -> Sums:
        """Sums over every `parts`-th image from `part` on."""
        mine: Subset[Any] = Subset(self.items, range(part, len(self.items), parts))  # type: ignore[arg-type]
        loader = DataLoader(mine, self.batch_size, num_workers=self.workers)
        like = next(model.parameters())
        device = like.device
        wrong = entropy = far = 0.0
        wanted: list[Tensor] = []
        for number, batch in enumerate(loader):
            images_BCHW = (batch if isinstance(batch, Tensor) else batch[0]).to(device, like.dtype)
            logits_BC = logits_of(model(images_BCHW)).float()
            if self.labels:
                labels_B = batch[1].to(device)
                wrong += 100 * float((logits_BC.argmax(-1) != labels_B).sum())
                entropy += float(F.cross_entropy(logits_BC, labels_B, reduction="sum"))
            if self.teacher is not None:
                wanted_BC = self._known((part, parts, number), images_BCHW)
                wanted.append(wanted_BC)
                far += float(per_image(wanted_BC, logits_BC, self.loss).sum())
        sums: dict[str, tuple[float, float]] = {}
        if self.labels:
            sums |= {"error": (wrong, len(mine)), "cross_entropy": (entropy, len(mine))}
        if self.teacher is not None:
            scale = spread(torch.cat(wanted), self.loss) if wanted else 1.0
            sums[self.loss] = (far / scale, len(mine))
        return sums

    def _known(self, place: tuple[int, int, int], images_BCHW: Tensor) -> Tensor:
        """The teacher's logits of a batch of a part, asked for once."""
        assert self.teacher is not None
        if place not in self._wanted:
            self._wanted[place] = self.teacher.logits(images_BCHW).float()
        return self._wanted[place]
