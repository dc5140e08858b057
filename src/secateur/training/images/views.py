"""Augmented views of images, made once and kept as 8-bit pixels, also for other runs.

Where images are seen in a fixed number of views, decoding and augmenting cost that many passes
over the images at most, however long one trains. What comes back is bit for bit what the transform
gave: it scales and shifts whole numbers from 0 to 255, which is undone without loss.
Legend: C channels, H height, W width.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.data.images import ImageSet
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.training.images.rows import RowFile
from secateur.training.settings import TrainSettings

VIEWS = ("kept_views", "views of images")
"""The setting that keeps them, and what it keeps."""


class KeptViews:
    """A file of (views, C H W + 1) bytes: the pixels of each view, then 1, or 0 if not yet made."""

    def __init__(self, file: Path, views: int, shown: Preprocessing) -> None:
        self._shape = shown.input_size
        self._rows = RowFile(file, views, math.prod(self._shape) + 1, VIEWS[1])
        missing = views * self._rows.length - self._rows.written()
        if missing > (free := shutil.disk_usage(file.parent).free):
            raise UserError(
                f"keeping all views of the images in '{file.parent}' takes {missing / 1e9:.1f} GB "
                f"more, of which {free / 1e9:.1f} GB are free; name a folder with room, set fewer "
                "augment.views, or leave out kept_views."
            )
        self._mean_C11 = torch.tensor(shown.mean)[:, None, None]
        self._std_C11 = torch.tensor(shown.std)[:, None, None]

    def __call__(self, row: int, make: Callable[[], tuple[Tensor, int]]) -> Tensor:
        """The view (C, H, W) of number `row`; `make` is called if it is not there yet."""
        found = np.frombuffer(bytearray(self._rows[row]), dtype=np.uint8)
        if found[-1] == 1:
            return self._shown(torch.from_numpy(found[:-1]).view(self._shape))
        image_CHW, _ = make()
        pixels_CHW = ((image_CHW * self._std_C11 + self._mean_C11) * 255).round().clamp(0, 255)
        pixels_CHW = pixels_CHW.to(torch.uint8)
        if not torch.equal(self._shown(pixels_CHW), image_CHW):
            raise UserError(
                "views of these images cannot be kept: their augmentation gives more than 8 bits "
                "per pixel; leave out kept_views."
            )
        self._rows[row] = np.append(pixels_CHW.numpy().ravel(), np.uint8(1)).tobytes()
        return image_CHW

    def _shown(self, pixels_CHW: Tensor) -> Tensor:
        # The operations of ToTensor and Normalize in their order, so that nothing rounds otherwise.
        return pixels_CHW.float().div_(255).sub_(self._mean_C11).div_(self._std_C11)


def kept_views(images: object, settings: TrainSettings) -> KeptViews | None:
    """The kept views of `images`; None where the settings name no folder.

    The file is named after all that decides what a view looks like. Raises UserError as `views_of`
    does, and for a folder that takes no files or has no room.
    """
    if settings.kept_views is None:
        return None
    images, views = views_of(images, settings, VIEWS)
    known = {
        "shown": asdict(images.preprocessing),
        "images": [images.source, images.fingerprint, images.names],
        "augment": settings.augment.model_dump(mode="json"),
        "seed": settings.seed,
    }
    mark = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16]
    file = settings.kept_views / f"{mark}.views"
    return KeptViews(file, len(images) * views, images.preprocessing)


def views_of(
    images: object, settings: TrainSettings, keeping: tuple[str, str]
) -> tuple[ImageSet, int]:
    """The images whose views can be told apart, and how many views each has; else UserError.

    `keeping` is the setting that asks for it and what it keeps.
    """
    (setting, what), views = keeping, settings.augment.views
    if views is None:
        raise UserError(
            f"{what} can be kept only where images have a fixed number of views; set "
            f"augment.views, such as 4, or leave out {setting}."
        )
    if not isinstance(images, ImageSet):
        raise UserError(
            f"{what} can be kept for images of files only, since others cannot be told apart from "
            f"run to run; give a path, or leave out {setting}."
        )
    return images, views
