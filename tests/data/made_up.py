"""Made-up images and the places they are kept in, for the tests of this room and others."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from secateur.data.preprocessing import Preprocessing

SMALL = Preprocessing(
    input_size=(3, 16, 16),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="center",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def png(shade: int, size: int = 16) -> bytes:
    """An encoded image of one colour; red and green tell the shade, blue is half of it."""
    buffer = io.BytesIO()
    pixels = np.full((size, size, 3), (shade, shade, shade // 2), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(size: int = 64) -> bytes:
    """An encoded image of noise, large enough to be cut short in the middle of its pixels."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """A folder with `counts[name]` images in each sub-folder `name`, all of different shades."""
    shade = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            shade += 1
            (root / name / f"{index}.png").write_bytes(png(shade))
    return root
