"""From the bytes of an image file to 8-bit grey or RGB pixels, as they are meant to be seen.

Shape suffixes: H height, W width.
"""

import io
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
_WHITE_16 = 65535
_SLACK = 1e-3
"""By how much floating-point pixels may exceed 1 through resampling."""


def decode(content: bytes, mode: str, *, small: bool = False) -> Image.Image:
    """The image in Pillow's `mode` "L" or "RGB", turned upright; of several frames, the first.

    16-bit pixels are scaled to 8 bits, transparent ones shown on white, CMYK and palettes turned
    into colours. With `small`, a JPEG is read whole but decoded at an eighth of its size.
    Raises whatever Pillow's decoders raise, and ValueError for pixels without a known white.
    """
    register_plugins()
    with Image.open(io.BytesIO(content)) as image:
        if small:
            image.draft(image.mode, (1, 1))
        return to_mode(_upright(image), mode)


@cache
def register_plugins() -> None:
    """Let Pillow read HEIF and JPEG XL where its plugins for them are installed."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        import_module("pillow_jxl")


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The same image in Pillow's `mode` "L" or "RGB"; see `decode`."""
    if image.mode == mode:
        if "transparency" not in image.info:
            return image.copy()
        image = image.convert("RGBA")
    elif image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.format))
    if image.has_transparency_data:
        image = _on_white(image)
    if image.mode not in ("1", "L", "RGB"):
        # WHY: Pillow turns some modes, such as CMYK, into RGB only.
        image = image.convert("RGB")
    return image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """The image as the camera saw it; as it is, where its EXIF data are damaged."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    # Readers of EXIF data fail on damaged ones with errors of every kind.
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _on_white(image: Image.Image) -> Image.Image:
    shown = image.convert("RGBA")
    if shown.getchannel("A").getextrema() == (255, 255):
        return shown.convert("RGB")
    page = Image.new("RGBA", shown.size, "white")
    return Image.alpha_composite(page, shown).convert("RGB")


def _eight_bits(pixels_HW: NDArray[Any], kind: str | None) -> NDArray[np.uint8]:
    """Grey pixels of more than 8 bits, scaled to 0..255; ValueError where white is not known.

    White is 65535 for 16 bits, as which Pillow reads all grey PNG and PGM files of more than 8.
    32-bit integers and floating-point numbers tell no white: it is 1 (for the latter), 255 or
    65535, the first that no pixel exceeds.
    """
    low, high = float(pixels_HW.min()), float(pixels_HW.max())
    white = float(_WHITE_16)
    if pixels_HW.dtype != np.uint16 and kind not in ("PNG", "PPM"):
        whites = (1.0, 255.0, white) if pixels_HW.dtype.kind == "f" else (255.0, white)
        white = next((w for w in whites if high <= w * (1 + _SLACK)), 0.0)
    if not (low >= 0 and white):
        raise ValueError(
            f"its pixels lie between {low:g} and {high:g}, where white is not known; save it with "
            "8 or 16 bits"
        )
    scaled_HW = np.rint(pixels_HW.astype(np.float64) * (255 / white))
    return scaled_HW.clip(0, 255).astype(np.uint8)
