"""The image files below a folder, found within bounds: no loop, no device, no endless listing."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from secateur.data.sources.endings import ending_of, is_image_ending, is_readable
from secateur.errors import UserError

MOST_ENTRIES = 16_000_000
"""Files and folders that are looked at; all of ImageNet has 14 million images."""
MOST_BEFORE_ONE = 200_000
"""Files and folders that are looked at before the first image is found."""
_SYSTEM = frozenset({"lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"})

Identity = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True)
class Listing:
    """What has been met so far below the folder called `where`.

    `unread` counts the images that Pillow cannot read, by ending; `special` names pipes, sockets
    and devices that are called like images. UserError where there are too many entries.
    """

    where: str
    entries: int = 0
    images: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    special: list[str] = field(default_factory=list)

    def scan(self, folder: Path) -> tuple[list[str], list[os.DirEntry[str]]]:
        """Names of the images directly in `folder`, and its sub-folders; hidden ones are not."""
        images: list[str] = []
        folders: list[os.DirEntry[str]] = []
        for entry in os.scandir(folder):
            self._count()
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if not entry.name.startswith("__") and entry.name not in _SYSTEM:
                    folders.append(entry)
            elif self._is_image(entry):
                images.append(entry.name)
        return images, folders

    def below(self, folder: Path, known: set[Identity]) -> list[str]:
        """Paths of the images at any depth, relative to `folder`, with forward slashes, sorted.

        Links to folders are followed, but no folder is entered twice, nor one that is `known`:
        so loops end. Links are followed last, so that an image keeps its own place.
        """
        entered = set(known)
        found: list[str] = []
        waiting, links = [(folder, "")], list[tuple[Path, str]]()
        while waiting or links:
            if not waiting:
                links.sort(key=lambda link: link[1], reverse=True)
                waiting.append(links.pop())
            place, prefix = waiting.pop()
            if (own := identity(place)) in entered:
                continue
            entered.add(own)
            images, folders = self.scan(place)
            found += [prefix + name for name in images]
            for entry in folders:
                within = links if entry.is_symlink() else waiting
                within.append((place / entry.name, f"{prefix}{entry.name}/"))
        return sorted(found)

    def _count(self) -> None:
        self.entries += 1
        if self.entries > MOST_ENTRIES:
            raise UserError(
                f"{self.where} holds more than {MOST_ENTRIES:,} files and folders; give the folder "
                "of the images alone, or parquet files or tar shards."
            )
        if not self.images and self.entries > MOST_BEFORE_ONE:
            raise UserError(
                f"there is no image among the first {MOST_BEFORE_ONE:,} files and folders in "
                f"{self.where}; give the folder of the images itself."
            )

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether `entry` is to be read; what cannot be is noted."""
        ending = ending_of(entry.name)
        if not is_image_ending(ending):
            return False
        if not (_is_regular(entry) or _is_broken(entry)):
            self.special.append(entry.name)
            return False
        if not is_readable(ending):
            self.unread[ending] += 1
            return False
        self.images += 1
        return True


def identity(folder: Path) -> Identity:
    """Device and inode of a folder, the same by whatever path it is reached."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def ancestors(folder: Path) -> Iterator[Identity]:
    """`folder` and all folders that hold it."""
    real = folder.resolve()
    return (identity(place) for place in (real, *real.parents))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to nothing, which is told of as an unreadable image."""
    try:
        return entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:
        return True
