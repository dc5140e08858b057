"""Teacher logits cached on disk by view, so that the teacher runs once on every view of an image.

Where images are seen in a fixed number of views, a teacher costs that many passes over the images
at most, however long one trains and however many runs share the folder; after Shen & Xing, A Fast
Knowledge Distillation Framework for Visual Recognition (arXiv 2112.01528), section 3, who keep
what a teacher says of random crops.
Legend: B batch, C classes, H height, W width, R views of all images.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.training.distillation.teacher import Teacher
from secateur.training.identity import digest
from secateur.training.images.rows import RowFile
from secateur.training.images.views import views_of
from secateur.training.settings import TrainSettings

LOGITS = ("distil.answers", "the teacher's logits")
"""The setting that keeps them, and what it keeps."""


class CachedLogits:
    """A file of (R, C + 1) numbers in fp32: the logits of each view, then 1, or 0 if not known yet.

    The 1 comes last, so that a row that was begun only does not count.
    """

    def __init__(self, file: Path, views: int, classes: int) -> None:
        self.file = file
        self.rows = RowFile(file, views, (classes + 1) * 4, LOGITS[1])

    def __call__(
        self, images_BCHW: Tensor, rows_B: Tensor, ask: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Logits (B, C) of images that are the views `rows_B`; `ask` is called for unknown ones."""
        rows = [int(row) for row in rows_B]
        found = np.stack([np.frombuffer(self.rows[row], dtype=np.float32) for row in rows])
        known_BC, new_B = (
            torch.from_numpy(found[:, :-1].copy()),
            torch.from_numpy(found[:, -1] != 1),
        )
        if new_B.any():
            asked_BC = ask(images_BCHW[new_B.to(images_BCHW.device)])
            known_BC[new_B] = asked_BC.float().cpu()
            for place in new_B.nonzero().flatten().tolist():
                row = np.append(known_BC[place].numpy(), np.float32(1))
                self.rows[rows[place]] = row.tobytes()
        return known_BC.to(images_BCHW.device)


def cached_logits_for(
    teacher: Teacher, images: object, settings: TrainSettings, folder: Path | None, classes: int
) -> CachedLogits | None:
    """The cached logits of `teacher` for the views of `images`; None without a folder.

    The file is named after all that decides what the teacher sees: another teacher, seed,
    augmentation, precision or choice of images has a file of its own. Raises UserError as
    `views_of` does, and for a folder that takes no files.
    """
    if folder is None:
        return None
    images, views = views_of(images, settings, LOGITS)
    view = teacher.view
    known = {
        "teacher": digest(teacher.model),
        "shown": [] if view is None else [asdict(view.before), asdict(view.after)],
        "images": [images.source, images.fingerprint, images.names],
        "augment": settings.augment.model_dump(mode="json"),
        "seed": settings.seed,
        "precision": settings.precision,
    }
    mark = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16]
    return CachedLogits(folder / f"{mark}.logits", len(images) * views, classes)
