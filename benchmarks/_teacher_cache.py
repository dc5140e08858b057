"""Remembers what the dense model says of each batch, since all methods see the same batches.

Which images a step sees, and how they are augmented, follows from the seed alone; so the teacher's
answers are the same for every method, and are looked up by the images themselves.
"""

import hashlib
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.healing.teacher import Teacher

SAVE_EVERY = 100
"""Batches between writes."""


def remember(folder: Path, name: str) -> None:
    """Keep answers of teachers of the model called `name` in `folder`, also for later runs."""
    known: dict[str, Tensor] = {}
    fresh: dict[str, Tensor] = {}
    for file in folder.glob(f"{name}-*.safetensors"):
        known |= load_file(file)
    plain = Teacher.logits

    def logits(self: Teacher, images_BCHW: Tensor) -> Tensor:
        raw = images_BCHW.detach().cpu().contiguous().numpy().tobytes()
        key = hashlib.blake2b(raw, digest_size=16).hexdigest()
        if key not in known:
            known[key] = fresh[key] = plain(self, images_BCHW).cpu()
            if len(fresh) % SAVE_EVERY == 0:
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = folder / f".{name}-{os.getpid()}"
                save_file(fresh, unfinished)
                unfinished.replace(folder / f"{name}-{os.getpid()}.safetensors")
        return known[key].to(images_BCHW.device)

    Teacher.logits = logits  # type: ignore[method-assign]
