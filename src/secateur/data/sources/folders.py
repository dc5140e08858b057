"""Folders of image files, with one sub-folder per class or without any."""

import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from timm.utils.misc import natural_key

from secateur.data.sources.endings import READ, left_out_note
from secateur.data.sources.listing import Listing, ancestors, identity
from secateur.data.sources.source import Source, read_file
from secateur.errors import Advice, UserError


def open_folder(folder: Path, where: str) -> Source:
    """List the images under `folder`, whose sub-folders are classes; hidden files are passed over.

    Classes are in timm's natural order of their names (2 before 10). Without sub-folders the
    images have no labels. Advice tells of images that cannot be read for want of a plugin. Raises
    UserError when there is no image, when it is not clear whether the sub-folders are classes,
    and when there are too many files to list.
    """
    if folder.resolve() == Path(folder.resolve().anchor):
        raise UserError(f"{where} is the root of a file system; give the folder of the images.")
    listing = Listing(where)
    known = set(ancestors(folder))
    loose, folders = listing.scan(folder)
    loose.sort()
    classes = sorted(
        # WHY: a link to a folder that holds this one is no class.
        (entry.name for entry in folders if identity(folder / entry.name) not in known),
        key=natural_key,
    )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = listing.below(folder / name, known)
        names += [f"{name}/{image}" for image in found]
        labels += [label] * len(found)
    if loose and names:
        raise UserError(
            f"{where} holds {len(loose)} loose images (such as '{loose[0]}') beside "
            f"{len(classes)} folders of images; move the loose ones into a class folder or away."
        )
    _tell(listing, where, alone=not loose and not names)
    return Source(
        names=loose or names,
        labels=labels or None,
        class_names=classes if labels else None,
        order_given=False,
        read=partial(_read, folder, loose or names),
    )


def _tell(listing: Listing, where: str, *, alone: bool) -> None:
    """Advice on images that were left out; UserError where no others are there."""
    notes = [left_out_note(listing.unread)] if listing.unread else []
    if count := len(listing.special):
        notes.append(
            f"{count} {'entry was' if count == 1 else 'entries were'} left out that "
            f"{'is' if count == 1 else 'are'} no regular file, such as '{listing.special[0]}'"
        )
    told = "; ".join(notes)
    if alone:
        raise UserError(
            f"no images in {where}{f' ({told})' if told else ''}; give a folder with one "
            f"sub-folder of images per class, a folder of images ({', '.join(sorted(READ))}), or "
            "parquet files."
        )
    if told:
        warnings.warn(f"{where}: {told}.", Advice, stacklevel=4)


def _read(folder: Path, names: Sequence[str], index: int) -> bytes:
    return read_file(os.path.join(folder, names[index]))
