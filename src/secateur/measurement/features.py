"""What a model knows about images before its classifier: pooled features, class token, patches.

Memory grows with the number of images, by three rows of floats for each (pooled feature, class
token, mean patch); tokens pass by. Legend: B batch, N tokens, n images, D residual width,
E width of the pooled feature.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.models.caches import evaluating
from secateur.models.outputs import outputs_of
from secateur.models.runner import Runner

OnBatch = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Pooled features (n, E) in fp32 on the CPU, and labels (n,), None without."""

    pooled_nE: Tensor
    labels_n: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """What one batch looked like inside a model: the stream after the last branch, and the pooled
    feature that the classifier reads (the output itself, for a model without one)."""

    stream_BND: Tensor
    pooled_BE: Tensor


class Reader:
    """Runs a model of a known family and sees what its classifier reads.

    A classifier is a linear layer outside the branches with an output per class; of several the
    first counts: in distilled DeiT that of the class token, in EfficientFormer either, since both
    read the same. Raises UserError where there is none to be found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._runner = Runner.of(model)
        self.anatomy = self._runner.anatomy
        self._classifier = None if self.anatomy.num_classes == 0 else self._find_classifier()

    def look(self, images_BCHW: Tensor) -> Glimpse:
        """One forward pass, in the mode and with the gradients of the moment."""
        seen: list[Tensor] = []
        x = self._runner.last(self._runner.embed(images_BCHW))
        with _inputs_of(self._classifier, seen):
            output = outputs_of(self._runner.finish(x, len(self._runner)))
        pooled_BE = seen[0] if self._classifier is not None else output
        stream_BND = x if x.ndim == 3 else x.flatten(2).transpose(1, 2)
        return Glimpse(stream_BND=stream_BND, pooled_BE=pooled_BE.flatten(1).float().cpu())

    def _find_classifier(self) -> nn.Module:
        inside = tuple(f"{block.id}." for block in self.anatomy.blocks)
        for name, module in self.model.named_modules():
            fits = isinstance(module, nn.Linear) and module.out_features == self.anatomy.num_classes
            if fits and not name.startswith(inside):
                found: nn.Module = module
                return found
        raise UserError(
            f"{type(self.model).__name__} has no linear classifier, so it is not clear what its "
            "features are; build it with num_classes=0."
        )


@contextmanager
def _inputs_of(module: nn.Module | None, seen: list[Tensor]) -> Iterator[None]:
    if module is None:
        yield
        return

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach())

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def extract(model: nn.Module, batches: Batches, on_batch: OnBatch | None = None) -> Features:
    """The pooled features of all images; UserError when they are not finite."""
    pooled: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        reader = Reader(model)
        for batch in batches:
            pooled.append(reader.look(batch.images_BCHW).pooled_BE.clone())
            if batch.labels_B is not None:
                labels.append(batch.labels_B.cpu())
            if on_batch is not None:
                on_batch(len(batch.images_BCHW))
    pooled_nE = torch.cat(pooled)
    if not bool(pooled_nE.isfinite().all()):
        raise UserError(
            f"the features of {type(model).__name__} are not finite; check its weights and the "
            "preprocessing."
        )
    return Features(pooled_nE=pooled_nE, labels_n=torch.cat(labels) if labels else None)
