"""Data sets by name through timm: Hugging Face (hfds), torchvision and TensorFlow Datasets."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset
from torch.utils.data import Dataset

from secateur.data.sources.parquet import IMAGE_COLUMNS
from secateur.data.sources.source import Source, encode_lossless, usable_labels
from secateur.errors import UserError

_NAMED = re.compile(r"(hfds|tfds|torch)/([^:@]+)(?::([^@]+))?(?:@(.+))?")
_Item = tuple[Image.Image, object]


def is_named(source: str) -> bool:
    """Whether `source` starts like a data set that timm opens by name."""
    return source.startswith(("hfds/", "tfds/", "torch/"))


def open_named(source: str) -> Source:
    """Open "hfds/NAME", "torch/NAME" or "tfds/NAME", then optionally ":SPLIT" and "@FOLDER".

    The split is "validation" unless given. FOLDER is where the data lie or are kept: the cache
    of Hugging Face, the data folder of TensorFlow Datasets, the root that torchvision needs. An
    hfds name may itself be a local folder. Raises UserError when the library cannot open it.
    """
    match = _NAMED.fullmatch(source)
    if match is None:
        raise UserError(
            f"cannot read the data name '{source}'; write it like hfds/OWNER/NAME:SPLIT or "
            "torch/cifar10:test@FOLDER."
        )
    library, name, split, folder = match[1], match[2], match[3] or "validation", match[4]
    if library == "torch" and folder is None:
        raise UserError(f"'{source}' needs the folder of its files; write '{source}@FOLDER'.")
    if library == "hfds":
        return _open_hugging_face(source, name, split, folder)
    data = _create(source, f"{library}/{name}", split, folder)
    if library == "torch":
        return _open_torchvision(data, source, _prefix(name, split))
    return copy_stream(cast(Iterable[_Item], data), source, _prefix(name, split))


def _prefix(name: str, split: str) -> str:
    """Start of the images' names, without folders, so that it is the same on every machine."""
    return f"{name.rstrip('/').rpartition('/')[2]}:{split}"


def _create(
    source: str, name: str, split: str, folder: str | None, image_column: str | None = None
) -> Dataset[_Item]:
    try:
        data: Dataset[_Item] = create_dataset(
            name, root=folder, split=split, input_key=image_column
        )
    except ImportError as error:
        raise UserError(f"'{source}' needs a library that is missing: {error}.") from error
    # These libraries say "no such data" with exceptions of every kind.
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"cannot open '{source}', split '{split}': {reason}; check the name, the split, "
            "which follows a colon, and that there are images and labels."
        ) from error
    return data


def _open_hugging_face(source: str, name: str, split: str, folder: str | None) -> Source:
    for column in IMAGE_COLUMNS:
        data = _create(source, f"hfds/{name}", split, folder, column)
        reader = cast(ImageDataset, data).reader
        if len(reader) == 0:
            raise UserError(f"no images in '{source}'; check the name and the split.")
        # timm adds a column of nulls where there is none of that name.
        if reader.dataset[0][column] is not None:
            break
    else:
        raise UserError(
            f"'{source}' has no images in a column 'image' or 'img' "
            f"(its columns: {', '.join(reader.dataset.column_names)}); choose another data set."
        )
    if reader.label_key not in reader.dataset.column_names:
        raise UserError(f"'{source}' has no column '{reader.label_key}'; choose another data set.")
    targets = reader.dataset[reader.label_key]
    known, problem = usable_labels(targets, source)
    return Source(
        names=[f"{_prefix(name, split)}#{index}" for index in range(len(targets))],
        labels=known,
        problem=problem,
        class_names=_ordered(reader.class_to_idx) if known else None,
        read=partial(_read_hugging_face, reader),
    )


def _ordered(class_to_index: dict[str, int]) -> list[str] | None:
    """Class names by index, if they are numbered 0, 1, 2, ..."""
    names = sorted(class_to_index, key=class_to_index.__getitem__)
    complete = [class_to_index[name] for name in names] == list(range(len(names)))
    return names if names and complete else None


def _read_hugging_face(reader: Sequence[tuple[BinaryIO, int]], index: int) -> bytes:
    with reader[index][0] as file:
        return file.read()


def _open_torchvision(data: Dataset[_Item], source: str, prefix: str) -> Source:
    targets = getattr(data, "targets", None)
    if targets is None:
        raise UserError(f"'{source}' has no list of labels; use its image folder instead.")
    labels, problem = usable_labels(targets, source)
    return Source(
        names=[f"{prefix}#{index}" for index in range(len(targets))],
        labels=labels,
        problem=problem,
        class_names=[str(name) for name in getattr(data, "classes", [])] or None,
        read=partial(_read_torchvision, data),
    )


def _read_torchvision(data: Dataset[_Item], index: int) -> bytes:
    return encode_lossless(data[index][0])


@dataclass(frozen=True)
class _Copied:
    """Images in one temporary file, found by where each starts."""

    file: Path
    starts: Sequence[int]

    def __call__(self, index: int) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.starts[index])
            return file.read(self.starts[index + 1] - self.starts[index])


def copy_stream(stream: Iterable[_Item], source: str, prefix: str) -> Source:
    """Copy a stream of (image, label) once into a temporary file, to be read in any order.

    The file holds uncompressed pixels and goes when the returned source does; a slice of the
    split, such as "validation[:5000]", keeps it small.
    """
    folder = Path(tempfile.mkdtemp(prefix="secateur-"))
    starts, labels = [0], list[object]()
    try:
        with (folder / "images").open("wb") as file:
            for image, label in stream:
                starts.append(starts[-1] + file.write(encode_lossless(image)))
                labels.append(label)
    except BaseException:
        shutil.rmtree(folder)
        raise
    if not labels:
        shutil.rmtree(folder)
        raise UserError(f"no images in '{source}'; check the name and the split.")
    read = _Copied(folder / "images", starts)
    weakref.finalize(read, shutil.rmtree, folder, ignore_errors=True)
    known, problem = usable_labels(labels, source)
    return Source(
        names=[f"{prefix}#{index}" for index in range(len(labels))],
        labels=known,
        problem=problem,
        read=read,
    )
