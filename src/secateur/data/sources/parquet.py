"""Parquet files in the Hugging Face layout: a column of encoded images and one of labels."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from secateur.data.sources.source import Source, usable_labels
from secateur.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

_Place = tuple[Path, int]
"""A file and one of its row groups."""


def open_parquet(files: Sequence[Path], where: str) -> Source:
    """List the rows of parquet `files`, in the order of the files' names.

    The image column is called "image" or "img" and holds a struct with the encoded file in its
    field "bytes", or those bytes themselves; the label column is "label", "labels" or
    "fine_label". Labels that are no integers are the source's `problem`. Raises UserError when a
    file is damaged or has no image column.

    Rows are read by row group, so in any order but quickest in file order.
    """
    names: list[str] = []
    labels: list[object] = []
    places: list[_Place] = []
    counts: list[int] = []
    class_names: list[str] | None = None
    image_column, wrong = "", None
    for file in sorted(files):
        try:
            parquet = pq.ParquetFile(file)
            image_column, label_column = _columns(parquet.schema_arrow, file)
            rows = parquet.metadata.num_rows
            if label_column and (told := _not_integers(parquet.schema_arrow, label_column, file)):
                wrong, label_column = told, None
            labels += (
                parquet.read(columns=[label_column]).column(0).to_pylist()
                if label_column
                else [None] * rows
            )
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot read {file} as parquet: {error}; fetch it again.") from error
        class_names = class_names or _class_names(parquet.schema_arrow, label_column)
        names += [f"{file.name}#{row}" for row in range(rows)]
        for group in range(parquet.num_row_groups):
            places.append((file, group))
            counts.append(parquet.metadata.row_group(group).num_rows)
    if not names:
        raise UserError(f"no rows in {where}; give parquet files with images.")
    known, problem = usable_labels(labels, where)
    return Source(
        names=names,
        labels=known,
        class_names=class_names if known else None,
        problem=wrong or problem,
        read=partial(_read, image_column, places, [0, *accumulate(counts)]),
    )


def _columns(schema: pa.Schema, file: Path) -> tuple[str, str | None]:
    """Names of the image column and of the label column, which may be missing."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None:
        raise UserError(
            f"{file} has no column 'image' or 'img' (its columns: {', '.join(schema.names)}); "
            "rename the column of encoded images."
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"column '{image}' of {file} is {schema.field(image).type}, not encoded images; "
            "store image files as bytes, as Hugging Face datasets do."
        )
    return image, label


def _not_integers(schema: pa.Schema, label: str, file: Path) -> str | None:
    """What is wrong with a label column that holds no integers."""
    if pa.types.is_integer(schema.field(label).type):
        return None
    return f"column '{label}' of {file} is {schema.field(label).type}; labels must be integers."


def _class_names(schema: pa.Schema, label_column: str | None) -> list[str] | None:
    """Names of the classes from the metadata that Hugging Face datasets writes, if any."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _read(image_column: str, places: Sequence[_Place], starts: Sequence[int], index: int) -> bytes:
    which = bisect_right(starts, index) - 1
    file, group = places[which]
    # Without the lock, verifying threads would each load the next row group at its first row.
    with _LOADING:
        images = _row_group(file, file.stat().st_mtime_ns, group, image_column)
    value = images[index - starts[which]].as_py()
    if not isinstance(value, bytes):
        raise OSError("the row has no image bytes")
    return value


_LOADING = Lock()


@lru_cache(maxsize=2)
def _row_group(file: Path, _modified: int, group: int, image_column: str) -> pa.ChunkedArray:
    """Encoded images of one row group; two groups at most are kept."""
    column = pq.ParquetFile(file).read_row_group(group, columns=[image_column]).column(0)
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
