"""What every place images come from gives: names, labels and encoded images by number."""

import io
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from secateur.data.decoding import to_mode
from secateur.errors import UserError

MOST_BYTES = 2**30
"""Of one encoded image."""

_SPLIT = re.compile(r"(train|training|test|val|valid|validation|dev|eval)(?![a-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Images that can be read in any order; nothing of them is held in memory.

    `names` are the same on every machine and unique. `labels` are None where there are none, and
    where they cannot be used, for the reason that `problem` tells in a sentence.
    `class_names` say what the labels mean where that is known; `order_given` is false where
    their order is only that of folder names, which a head need not share.
    `read(i)` returns the encoded file of image i; it can be pickled for loader workers.
    """

    names: Sequence[str]
    labels: Sequence[int] | None
    class_names: Sequence[str] | None = None
    order_given: bool = True
    problem: str | None = None
    read: Callable[[int], bytes]


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file; OSError for a device or pipe, and for a file beyond all size."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    refuse_large(status.st_size)
    with open(path, "rb") as file:
        return file.read(MOST_BYTES)


def refuse_large(size: int) -> None:
    """OSError for an image file of more than `MOST_BYTES`."""
    if size > MOST_BYTES:
        raise OSError(
            f"it has {size / 2**30:.1f} GiB, more than the {MOST_BYTES / 2**30:g} allowed"
        )


def usable_labels(labels: Sequence[object], where: str) -> tuple[list[int] | None, str | None]:
    """Class numbers, None if no image has one (a missing one is None or below 0), or the problem.

    It is a problem when only some images have one, and when one is no whole number.
    """
    known: list[int] = []
    for label in labels:
        if isinstance(label, Tensor | np.ndarray | np.generic):
            label = label.tolist()
        if label is None or (isinstance(label, int) and label < 0):
            continue
        if not isinstance(label, int):
            shown = f"{type(label).__name__} '{str(label)[:40]}'"
            return None, (
                f"{where}: a label is the {shown}, not one class number; give images with one "
                "class number each."
            )
        known.append(int(label))
    if known and len(known) < len(labels):
        return None, (
            f"{where}: only {len(known)} of {len(labels)} images have a label; "
            "give all images a label or none."
        )
    return known or None, None


def refuse_mixed_splits(files: Sequence[Path], where: str) -> None:
    """Raise UserError when the names of `files` tell of several splits, such as train and test.

    Scoring a model on a folder that also holds its training split would flatter it.
    """
    splits = {match[1] for file in files if (match := _SPLIT.match(file.name.lower()))}
    if len(splits) > 1:
        one = sorted(splits)[0]
        raise UserError(
            f"{where} holds several splits ({', '.join(sorted(splits))}); "
            f"name one, for example '{where}/{one}*{files[0].suffix}'."
        )


def encode_lossless(image: Image.Image) -> bytes:
    """Return a decoded image as an uncompressed PPM or PGM file, the same on every machine."""
    buffer = io.BytesIO()
    grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    to_mode(image, "L" if grey else "RGB").save(buffer, "PPM")
    return buffer.getvalue()
