"""Folders of image files, with one sub-folder per class or without any."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from timm.utils.misc import natural_key

from secateur.data.source import Source
from secateur.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


def open_folder(folder: Path, where: str) -> Source:
    """List the images under `folder`, whose sub-folders are classes; hidden files are passed over.

    Classes are in timm's natural order of their names (2 before 10). Without sub-folders the
    images have no labels. Raises UserError when there is no image or when it is not clear
    whether the sub-folders are classes.
    """
    loose = sorted(entry.name for entry in os.scandir(folder) if _is_image(entry.name))
    classes = sorted(
        (e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith((".", "__"))),
        key=natural_key,
    )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_below(folder / name)
        names += [f"{name}/{image}" for image in found]
        labels += [label] * len(found)
    if loose and names:
        raise UserError(
            f"{where} holds {len(loose)} loose images (such as '{loose[0]}') beside "
            f"{len(classes)} folders of images; move the loose ones into a class folder or away."
        )
    if not loose and not names:
        raise UserError(
            f"no images in {where}; give a folder with one sub-folder of images per class, "
            f"a folder of images ({', '.join(sorted(IMAGE_SUFFIXES))}), or parquet files."
        )
    return Source(
        names=loose or names,
        labels=labels or None,
        class_names=classes if labels else None,
        order_given=False,
        read=partial(_read, folder, loose or names),
    )


def _images_below(folder: Path) -> list[str]:
    """Paths of the images at any depth, relative to `folder`, with forward slashes, sorted."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        below = Path(place).relative_to(folder)
        found += [(below / name).as_posix() for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _read(folder: Path, names: Sequence[str], index: int) -> bytes:
    return (folder / names[index]).read_bytes()
