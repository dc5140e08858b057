"""Open models and images by name, with their common preprocessing."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from secateur.data.batches import Batches, as_batches
from secateur.data.examples import Shape
from secateur.data.images import DIGITS, ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.data.sources.named import is_named
from secateur.errors import UserError
from secateur.measurement.modes import example_images
from secateur.models.caches import evaluating
from secateur.models.family import read
from secateur.models.statement import Statement
from secateur.models.walk_check import bind_
from secateur.request.takes import takes
from secateur.storage.base import Base
from secateur.storage.load import load as load_model
from secateur.storage.meta import on_meta
from secateur.storage.spec import SPEC
from secateur.verbs.requests import LoadRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUsed:
    """The images of a run. `classes` is the number of classes, 0 if there are none or not known.

    `repeated` images have the content of an earlier one.
    """

    source: str
    images: int
    fingerprint: str | None = None
    unreadable: tuple[str, ...] = ()
    classes: int = 0
    repeated: int = 0

    def notes(self) -> list[str]:
        """What to know of a comparison of models on these images."""
        found = [unreadable_note(self.unreadable)] if self.unreadable else []
        if self.repeated:
            found.append(
                f"{self.repeated} of {self.images} images have the content of another one; they "
                "count each time, so that the standard errors are too small."
            )
        return found


@takes(LoadRequest)
def load(source: str | Path | nn.Module, request: LoadRequest) -> nn.Module:
    """A model in eval mode, ready to be pruned or used; see `secateur.storage.load` for sources.

    `mean`, `std` (one value or one per channel), `crop_pct` and `interpolation` replace those of
    the model's configuration; they are saved with every model pruned from it. `pretrained` False
    leaves the weights of a named model random. `family`, a statement
    (`secateur.models.statement.Statement`), says how a model of your own is built. Raises UserError
    for unknown names, weights that do not fit or hold NaN, damaged directories.
    """
    model = load_model(
        source,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        img_size=request.img_size,
        pretrained=request.pretrained,
        device=request.device,
    )
    if request.family is not None:
        statement: Statement = request.family
        bind_(model, statement)
    wanted = request.preparation()
    if any(value is not None for value in wanted.values()):
        give_preprocessing_(model, Preprocessing.of(model).override(**wanted))
    return model


def load_shape(
    source: str,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A model for its sizes alone: untrained where its weights would be downloaded.

    On the meta device, an untrained model takes neither time nor memory.
    """
    named = ":" in source and not source.startswith(("hub:", "zoo:"))
    untrained = named and not (Path(source) / SPEC).is_file()
    with on_meta() if untrained and str(device) == "meta" else nullcontext():
        return load_model(
            source,
            num_classes=num_classes,
            img_size=img_size,
            pretrained=False if untrained else None,
            device=device,
        )


def open_data(
    model: nn.Module,
    images: object,
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    skip_unreadable: bool = False,
    own_labels: bool = False,
    labels_needed: bool = True,
) -> tuple[Batches, DataUsed]:
    """Batches of images for `model`, on its device and in its type, and their origin.

    `images` is a path or data string, or any input of `as_batches`. The options up to
    `skip_unreadable` concern the former: see `secateur.data.images.open_images`. With `own_labels`,
    labels are numbered by the classes of the images, independently of the head. Without
    `labels_needed`, images may be of other classes or have targets of any kind, which are then left
    out. UserError for images that the model cannot process.
    """
    if not isinstance(model, nn.Module):
        read(model)  # Raises; any module can be measured, of a known family or not.
    if isinstance(images, str | Path):
        images = open_images(
            images,
            Preprocessing.of(model),
            limit=limit,
            seed=seed,
            num_classes=None if own_labels else read(model).num_classes or None,
            labels_needed=labels_needed,
            skip_unreadable=skip_unreadable,
        )
    like = example_images(model, (0, 0, 0), 0)
    batches = as_batches(
        images, batch_size, workers, like.device, dtype=like.dtype, any_targets=not labels_needed
    )
    if not isinstance(images, ImageSet):
        if batches.shape is not None:
            refuse_other_images(model, batches.shape)
        return batches, DataUsed(source=type(images).__name__, images=batches.images)
    return batches, DataUsed(
        source=images.source,
        images=len(images),
        fingerprint=images.fingerprint,
        unreadable=images.unreadable,
        classes=images.label_count,
        repeated=images.repeated,
    )


def refuse_other_images(model: nn.Module, shape: Shape) -> None:
    """UserError when `model` cannot process images of this shape, found by a forward pass.

    An image of the model's own size is not tried; one of other channels is refused.
    """
    try:
        takes: Shape | None = Preprocessing.of(model).input_size
    except UserError:
        takes = None
    if shape == takes:
        return
    reason = "" if takes is None else f", but the model takes {list(takes)}"
    if takes is None or takes[0] == shape[0]:
        try:
            with evaluating(model), torch.inference_mode():
                model(torch.zeros_like(example_images(model, shape, 1)))
        # Models refuse images with errors of every kind.
        except Exception as error:
            reason = reason or f", which the model does not take ({str(error)[:200]})"
        else:
            return
    raise UserError(
        f"the images are {list(shape)} (channels, height, width){reason}; resize and normalise "
        "them as Preprocessing.of(model).transform() does."
    )


def unreadable_note(names: tuple[str, ...]) -> str:
    """A sentence naming images that were left out."""
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} unreadable images were left out: {some}."


def refuse_missing(source: str | Path) -> None:
    """UserError for images at a path that does not exist; opens nothing."""
    text = str(source).removeprefix("wds/")
    if isinstance(source, str) and (source in DIGITS or is_named(source)):
        return
    path = Path(text).expanduser()
    if not (path.parent if "*" in path.name else path).exists():
        raise UserError(
            f"no images at '{source}': there is no such file or folder; give an image folder, "
            "parquet files, tar shards, a timm name such as hfds/OWNER/NAME, or 'digits'."
        )


def give_preprocessing_(model: nn.Module, images: Preprocessing) -> None:
    """Store it where `Preprocessing.of`, timm and a later save find it."""
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in images.to_json().items()}
    config = {**(getattr(model, "pretrained_cfg", None) or {}), **own}
    model.__dict__.update(pretrained_cfg=config, default_cfg=config)
    base = getattr(model, "secateur_base", None)
    if isinstance(base, Base):
        model.__dict__.update(secateur_base=replace(base, preprocessing=images))
