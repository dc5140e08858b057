"""How the image processors of transformers prepare images, in timm's terms."""

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.data.preprocessing import Preprocessing
from secateur.errors import Advice

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's numbered filters."""

Processor = Any
"""An image processor of transformers."""

ODD = (
    ("do_flip_channel_order", True, "puts blue before red"),
    ("do_resize", False, "leaves images in their size"),
)
"""Settings that have no counterpart here, with the value at which they matter."""

LARGE = 384
"""From this edge on, processors with a `crop_pct` squash instead of cropping."""


def preprocessing_of(transformers: ModuleType, name: str) -> dict[str, object]:
    """Size, resize, crop and normalisation; empty with a warning where none are recorded."""
    try:
        found: Processor = transformers.AutoImageProcessor.from_pretrained(
            name, trust_remote_code=False
        )
    except (ImportError, OSError, ValueError, KeyError):
        warnings.warn(
            f"{name} does not say how its images are prepared; ImageNet's mean and standard "
            "deviation are assumed unless you give others",
            Advice,
            stacklevel=5,
        )
        return {}
    odd = [words for flag, at, words in ODD if getattr(found, flag, not at) is at]
    for words in odd:
        warnings.warn(
            f"the image processor of {name} {words}, which secateur does not do when it reads "
            "image files; give tensors that the processor has prepared",
            Advice,
            stacklevel=5,
        )
    return _geometry(found) | _normalisation(found)


def _geometry(found: Processor) -> dict[str, object]:
    """What the resized and cropped image is; crops are of the middle."""
    size = _sides(getattr(found, "size", None))
    interpolation = RESAMPLING[int(getattr(found, "resample", None) or 2)]
    crop = _sides(found.crop_size) if getattr(found, "do_center_crop", False) else None
    sides, share, mode = crop or size, 1.0, "center" if crop else "squash"
    edge = min(size) if size else 0
    if crop and edge:
        edge = int(256 / 224 * edge) if type(found).__name__.startswith("Levit") else edge
        share = min(1.0, crop[0] / edge)
    elif (given := getattr(found, "crop_pct", None)) and edge < LARGE:
        share, mode = float(given), "center"
    elif getattr(found, "do_pad", False) and "longest_edge" in dict(found.size):
        sides, mode = _sides(found.pad_size) or sides, "border"
    elif "shortest_edge" in dict(getattr(found, "size", None) or {}):
        mode = "center"
    found_size = {} if sides is None else {"input_size": (3, *sides)}
    return {"interpolation": interpolation, "crop_pct": share, "crop_mode": mode, **found_size}


def _sides(size: Any) -> tuple[int, int] | None:
    """Rows and columns of any of the forms of a size."""
    if size is None or isinstance(size, int):
        return None if size is None else (size, size)
    known = dict(size)
    height = known.get("height") or known.get("shortest_edge") or known.get("longest_edge")
    return None if height is None else (int(height), int(known.get("width") or height))


def _normalisation(found: Processor) -> dict[str, object]:
    """Mean and deviation for pixel values between 0 and 1, whatever scale the processor uses."""
    mean, std = [0.0] * 3, [1.0] * 3
    if getattr(found, "do_normalize", False):
        mean, std = list(found.image_mean), list(found.image_std)
    factor = float(found.rescale_factor) if getattr(found, "do_rescale", False) else 1.0
    scale = 255 * factor
    if abs(scale - 1.0) < 1e-6:
        scale = 1.0
    return {"mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}


def write_processor(folder: Path, images: Preprocessing) -> None:
    """Write how images are prepared, for AutoImageProcessor."""
    _, height, width = images.input_size
    cropped = images.crop_mode == "center"
    edge = round(min(height, width) / images.crop_pct)
    settings = {
        "image_processor_type": "BitImageProcessor" if cropped else "ViTImageProcessor",
        "size": {"shortest_edge": edge} if cropped else {"height": height, "width": width},
        "resample": RESAMPLING.index(images.interpolation),
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
    if cropped:
        settings |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
