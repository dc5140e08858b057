"""WebDataset shards: tar files in which an image and its label share a name.

They are indexed once by their tar headers and read at random, rather than streamed by timm's
reader: that one passes over images it cannot decode, and cannot tell how many there are.
"""

import json
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from secateur.data.sources.endings import is_image_ending, is_readable, left_out_note
from secateur.data.sources.source import Source, refuse_large, usable_labels
from secateur.errors import Advice, UserError
from secateur.textfiles import RepeatedName, unique

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_MOST_LABEL_BYTES = 2**20


@dataclass(slots=True)
class _Sample:
    """Where the image lies in its shard, in bytes, and what it shows."""

    offset: int | None = None
    size: int = 0
    label: int | None = None


def open_shards(shards: Sequence[Path], where: str) -> Source:
    """List the samples of uncompressed tar `shards`, in the order of the shards' names.

    A sample is the files that share a name up to its first dot: one image and its label as text in
    `.cls` or under "label" in `.json`. Advice tells of images that cannot be read for want of a
    plugin; labels that are no integers are the source's `problem`. Raises UserError when a shard
    is damaged or compressed, or holds no image.
    """
    names: list[str] = []
    labels: list[int | None] = []
    places: list[tuple[Path, int, int]] = []
    unread: Counter[str] = Counter()
    wrong: list[str] = []
    for shard in sorted(shards):
        for key, sample in _index(shard, unread, wrong).items():
            if sample.offset is not None:
                names.append(f"{shard.name}/{key}")
                labels.append(sample.label)
                places.append((shard, sample.offset, sample.size))
    told = left_out_note(unread)
    if not names:
        raise UserError(
            f"no images in {where}{f' ({told})' if told else ''}; give tar files with .jpg, .png "
            "or .webp members."
        )
    if told:
        warnings.warn(f"{where}: {told}.", Advice, stacklevel=3)
    known, problem = usable_labels(labels, where)
    return Source(
        names=names,
        labels=None if wrong else known,
        problem=wrong[0] if wrong else problem,
        read=partial(_read, places),
    )


def _index(shard: Path, unread: Counter[str], wrong: list[str]) -> dict[str, _Sample]:
    """Samples of one shard by name; only headers and labels are read.

    What Pillow cannot read is counted in `unread`; what is wrong with labels goes into `wrong`.
    """
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or match is None:
                    continue
                sample = samples.setdefault(match[1], _Sample())
                ending = match[2].lower()
                if ending in ("cls", "json"):
                    content = tar.extractfile(member)
                    text = content.read(_MOST_LABEL_BYTES) if content else b""
                    try:
                        label = _label(text, ending, shard, member.name)
                    except UserError as error:
                        wrong.append(str(error))
                        continue
                    sample.label = label if label is not None else sample.label
                elif is_image_ending(f".{ending}") and not is_readable(f".{ending}"):
                    unread[f".{ending}"] += 1
                elif is_image_ending(f".{ending}") and sample.offset is None:
                    sample.offset, sample.size = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"cannot read {shard} as an uncompressed tar file: {error}; unpack or fetch it again."
        ) from error
    return samples


def _label(content: bytes, ending: str, shard: Path, member: str) -> int | None:
    try:
        if ending == "cls":
            return int(content)
        label = json.loads(content, object_pairs_hook=unique).get("label")
        return None if label is None else int(label)
    except RepeatedName as error:
        raise UserError(f"'{member}' of {shard} cannot be read: {error}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the label in '{member}' of {shard} is not an integer; write the class's number."
        ) from error


def _read(places: Sequence[tuple[Path, int, int]], index: int) -> bytes:
    shard, offset, size = places[index]
    refuse_large(size)
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
