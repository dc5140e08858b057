"""Open images from wherever they are, checked, prepared for a model and in a fixed order."""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from secateur.data.classes import class_indices, refuse_unlikely_numbers
from secateur.data.decoding import decode
from secateur.data.preprocessing import Preprocessing, Transform
from secateur.data.sources.folders import open_folder
from secateur.data.sources.named import is_named, open_named
from secateur.data.sources.parquet import open_parquet
from secateur.data.sources.shards import open_shards
from secateur.data.sources.source import Source, encode_lossless, refuse_mixed_splits
from secateur.errors import Advice, UserError

DIGITS = {"digits": "test", "digits/test": "test", "digits/train": "train"}
_VERIFIED_AT_ONCE = 4096
Content = tuple[int, bytes]


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images by number as (float32 [C, H, W], label), decoded when asked for.

    `labels` has one entry per image, -1 where it is not known; `label_count` is the number of
    classes the labels count over, 0 without labels. `unreadable` names the images that were left
    out, `repeated` counts those whose content an earlier one has. `fingerprint` is a SHA-256 over
    names, sizes in bytes and labels: the same images give the same fingerprint on every machine.
    `dataclasses.replace(images, transform=...)` gives the same images with another transform, such
    as one that augments.
    """

    source: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    label_count: int
    unreadable: tuple[str, ...]
    repeated: int
    fingerprint: str
    preprocessing: Preprocessing
    transform: Transform = field(repr=False)
    read: Callable[[int], bytes] = field(repr=False)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return self.label_count > 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, label = self.names[index], self.labels[index]
        try:
            pixels = decode(self.read(index), self.preprocessing.image_mode)
        # Decoders fail on damaged files with errors of every kind.
        except Exception as error:
            raise UserError(
                f"image '{name}' of {self.source} could be read before but cannot be now: "
                f"{error}; leave the images alone while they are in use."
            ) from error
        return self.transform(pixels), label


def open_images(
    source: str | Path,
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    labels_needed: bool = True,
    skip_unreadable: bool = False,
) -> ImageSet:
    """Open the images of `source`, each of which has been decoded once to see that it can be.

    `source` is an image folder, a parquet file, a tar shard, a folder or a pattern (`*.parquet`)
    of either, a timm name ("hfds/...", "torch/...", "tfds/...": see `open_named`; "wds/..." is a
    path to shards), or "digits", "digits/train" or "digits/test". A `Path` is always a path.

    `limit` keeps that many images, spread over the classes as evenly as they allow; which ones,
    depends only on `seed` and their names, and a smaller limit keeps a part of a larger one's.
    `num_classes` is the number of outputs of the head that the labels are for: folders named by
    WordNet id go to the outputs of ImageNet's classes. Where labels are not `labels_needed`, images
    of other classes count as unlabelled, and Advice tells of it.

    Raises UserError when nothing is there, when the model takes neither grey nor RGB images, when
    needed classes do not match the head, or when an image cannot be decoded, unless
    `skip_unreadable` leaves it out (fewer than `limit` may be left).
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit on images must be at least 1, not {limit}.")
    where, mode = str(source), preprocessing.image_mode
    try:
        found = _open_source(source)
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or where}; ask for it.") from error
    except OSError as error:
        raise UserError(
            f"cannot list the images of {where}: {error.strerror or error}; check the path."
        ) from error
    try:
        labels, label_count = _labels_of_head(found, num_classes, where)
    except UserError as error:
        if labels_needed:
            raise
        labels, label_count = None, 0
        reason = str(error).rpartition("; ")[0] or str(error).rstrip(".")
        warnings.warn(f"the labels of {where} are not used: {reason}.", Advice, stacklevel=3)
    chosen = _choose(found.names, labels, limit, seed)
    contents, reasons = _verify(found, chosen, mode)
    if reasons and (not skip_unreadable or len(reasons) == len(chosen)):
        raise UserError(_unreadable_sentence(where, reasons, len(chosen)))
    kept = [index for index in chosen if found.names[index] not in reasons]
    names = tuple(found.names[index] for index in kept)
    kept_labels = tuple(labels[index] if labels else -1 for index in kept)
    return ImageSet(
        source=where,
        names=names,
        labels=kept_labels,
        label_count=label_count,
        unreadable=tuple(reasons),
        repeated=len(kept) - len({contents[index] for index in kept}),
        fingerprint=_fingerprint(names, [contents[index][0] for index in kept], kept_labels),
        preprocessing=preprocessing,
        transform=preprocessing.transform(),
        read=partial(_read_kept, found.read, kept),
    )


def _open_source(source: str | Path) -> Source:
    """Find out what sort of place `source` is and list its images."""
    where = str(source)
    if isinstance(source, str):
        if source in DIGITS:
            return _open_digits(source)
        if is_named(source):
            return open_named(source)
        if source.startswith("wds/"):
            source = source.removeprefix("wds/")
    path = Path(source).expanduser()
    if "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    elif path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
        files = files or sorted(path.glob("*.tar"))
        if not files:
            return open_folder(path, where)
        refuse_mixed_splits(files, where)
    else:
        files = [path]
    odd = next((file for file in files if file.exists() and not file.is_file()), None)
    if odd is not None:
        raise UserError(
            f"'{odd}' is no regular file; give an image folder, parquet files or tar shards."
        )
    if not all(file.is_file() for file in files) or not files:
        raise UserError(
            f"no images at '{where}': there is no such file or folder; give an image folder, "
            "parquet files, tar shards, a timm name such as hfds/OWNER/NAME, or 'digits'."
        )
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        return open_parquet(files, where)
    if suffixes == {".tar"}:
        return open_shards(files, where)
    raise UserError(
        f"'{where}' is neither a folder nor .parquet nor .tar files; "
        "give the folder that holds the images."
    )


def _open_digits(source: str) -> Source:
    # Here, because scikit-learn is slow to import and most runs do without it.
    from secateur.data.digits import load_digits_split

    images, labels = load_digits_split("train" if DIGITS[source] == "train" else "test")
    files = [encode_lossless(Image.fromarray(image)) for image in images]
    return Source(
        names=[f"digits/{DIGITS[source]}#{index}" for index in range(len(files))],
        labels=labels.tolist(),
        class_names=[str(digit) for digit in range(10)],
        read=files.__getitem__,
    )


def _labels_of_head(
    found: Source, num_classes: int | None, where: str
) -> tuple[list[int] | None, int]:
    """The labels as outputs of the head, and the number of classes they count over."""
    if found.problem is not None:
        raise UserError(found.problem)
    if found.labels is None:
        return None, 0
    largest = max(found.labels)
    if found.class_names is not None and largest < len(found.class_names):
        indices, count = class_indices(
            found.class_names, num_classes, order_given=found.order_given, where=where
        )
        return [indices[label] for label in found.labels], count
    if num_classes is not None:
        refuse_unlikely_numbers(found.labels, num_classes, where)
    return list(found.labels), num_classes or largest + 1


def _choose(
    names: Sequence[str], labels: Sequence[int] | None, limit: int | None, seed: int
) -> list[int]:
    """Numbers of the images to use, ascending.

    Images are ranked within their class by a hash of their name, then taken rank by rank.
    """
    if limit is None or limit >= len(names):
        return list(range(len(names)))
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    ranks: dict[int, int] = defaultdict(int)
    ranked: list[tuple[int, int]] = []
    for index in sorted(range(len(names)), key=keys.__getitem__):
        label = labels[index] if labels else 0
        ranked.append((ranks[label], index))
        ranks[label] += 1
    # The sort is stable: images of one rank stay in the order of their hashes.
    return sorted(index for _, index in sorted(ranked, key=lambda pair: pair[0])[:limit])


def _verify(
    found: Source, chosen: Sequence[int], mode: str
) -> tuple[dict[int, Content], dict[str, str]]:
    """Decode each chosen image; return what is in them and, by name, why some cannot be read."""
    contents: dict[int, Content] = {}
    reasons: dict[str, str] = {}
    check = partial(_check, found.read, mode)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(chosen), _VERIFIED_AT_ONCE):
            part = chosen[start : start + _VERIFIED_AT_ONCE]
            for index, result in zip(part, pool.map(check, part), strict=True):
                if isinstance(result, str):
                    reasons[found.names[index]] = result
                else:
                    contents[index] = result
    return contents, reasons


def _check(read: Callable[[int], bytes], mode: str, index: int) -> Content | str:
    """The size of an image in bytes and its hash, or why it cannot be read."""
    try:
        content = read(index)
        decode(content, mode, small=True)
    # Decoders fail on damaged files with errors of every kind.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return len(content), hashlib.blake2b(content, digest_size=8).digest()


def _unreadable_sentence(where: str, reasons: dict[str, str], total: int) -> str:
    first = [f"'{name}' ({reason})" for name, reason in list(reasons.items())[:3]]
    more = f" and {len(reasons) - len(first)} more" if len(reasons) > len(first) else ""
    advice = (
        "; repair or remove them, or leave them out with --skip-unreadable."
        if len(reasons) < total
        else "; give images that can be decoded."
    )
    return (
        f"{len(reasons)} of {total} images of {where} cannot be read: "
        f"{', '.join(first)}{more}{advice}"
    )


def _fingerprint(names: Sequence[str], sizes: Sequence[int], labels: Sequence[int]) -> str:
    lines = sorted(f"{n}\0{s}\0{i}\n" for n, s, i in zip(names, sizes, labels, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_kept(read: Callable[[int], bytes], kept: Sequence[int], index: int) -> bytes:
    return read(kept[index])
