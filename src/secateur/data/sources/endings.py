"""Which files are images by their endings, and which of those Pillow can read here."""

import os
from collections import Counter
from collections.abc import Mapping

from PIL import Image

from secateur.data.decoding import register_plugins

_READ = """
.apng .bmp .dib .gif .j2k .jfif .jif .jp2 .jpe .jpeg .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .psd
.qoi .tga .tif .tiff .webp
"""
READ = frozenset(_READ.split())
"""Endings that every Pillow reads."""
_HEIF = "install pillow-heif"
_RAW = "convert them to 16-bit PNG or to JPEG"
_ASKS: Mapping[str, str] = {
    ".heic": _HEIF,
    ".heif": _HEIF,
    ".hif": _HEIF,
    ".avif": "install Pillow 11.3 or later",
    ".jxl": "install pillow-jxl-plugin",
    **dict.fromkeys([".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"], _RAW),
    **dict.fromkeys([".exr", ".hdr", ".svg"], "convert them to PNG"),
}
"""What to do about the other endings where Pillow does not read them."""
_SAME = {".hif": ".heif"}
_CONVERTED = (_RAW, "convert them to PNG")


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty without."""
    return os.path.splitext(name)[1].lower()


def is_image_ending(ending: str) -> bool:
    """Whether files with this ending are images, be they readable or not."""
    return ending in READ or ending in _ASKS


def is_readable(ending: str) -> bool:
    """Whether Pillow, with the plugins that are installed, reads files with this ending."""
    if ending in READ:
        return True
    if _ASKS.get(ending, _RAW) in _CONVERTED:
        return False
    register_plugins()
    return _SAME.get(ending, ending) in Image.registered_extensions()


def left_out_note(counts: Counter[str]) -> str:
    """How many files of which endings Pillow cannot read, and what to do: half a sentence."""
    return "; ".join(
        f"{count} {ending} {'file was' if count == 1 else 'files were'} left out, which Pillow "
        f"cannot read here: {_ASKS[ending]}"
        for ending, count in sorted(counts.items())
    )
