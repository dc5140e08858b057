import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.data.decoding import decode
from secateur.data.images import open_images
from secateur.data.sources.source import encode_lossless
from secateur.errors import UserError
from tests.data.made_up import SMALL

GREYS = np.array([[0, 64, 128, 255]] * 2, np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def sixteen(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16) * 257)


DEEP = {
    "16-bit PNG": encoded(sixteen(GREYS), "PNG"),
    "16-bit TIFF": encoded(sixteen(GREYS), "TIFF"),
    "16-bit PGM": encoded(sixteen(GREYS), "PPM"),
    "32-bit TIFF of 16 bits": encoded(Image.fromarray(GREYS.astype(np.int32) * 257), "TIFF"),
    "32-bit TIFF of 8 bits": encoded(Image.fromarray(GREYS.astype(np.int32)), "TIFF"),
    "floats up to 1": encoded(Image.fromarray(GREYS.astype(np.float32) / 255), "TIFF"),
    "floats up to 255": encoded(Image.fromarray(GREYS.astype(np.float32)), "TIFF"),
    "floats up to 65535": encoded(Image.fromarray(GREYS.astype(np.float32) * 257), "TIFF"),
    "8 bits": encoded(Image.fromarray(GREYS), "PNG"),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP)
def test_pixels_of_every_depth_keep_their_shade(content: bytes, mode: str) -> None:
    pixels = np.asarray(decode(content, mode))
    expected = GREYS if mode == "L" else np.repeat(GREYS[..., None], 3, axis=2)
    assert np.array_equal(pixels, expected)


def test_a_dark_16_bit_image_stays_dark() -> None:
    dark = encoded(Image.fromarray(np.full((2, 2), 200, np.uint16)), "PPM")
    assert np.asarray(decode(dark, "L")).max() == 1


@pytest.mark.parametrize(
    "values", [(-3.0, 7.0), (0.0, 1e6), (0.0, float("nan"))], ids=["below", "above", "nan"]
)
def test_pixels_without_a_known_white_are_refused_by_name(
    tmp_path: Path, values: tuple[float, float]
) -> None:
    image = Image.fromarray(np.array([values] * 2, np.float32))
    (tmp_path / "odd.tif").write_bytes(encoded(image, "TIFF"))
    with pytest.raises(UserError, match=r"odd\.tif.*white is not known"):
        open_images(tmp_path, SMALL)


def palette(transparent: int | bytes | None) -> Image.Image:
    """One pixel of red and one of blue; index 1 is blue."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


RED, BLUE, WHITE, PINK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (255, 127, 127)


def of(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)  # type: ignore[arg-type]
    return image


COLOURS = {
    "palette": (encoded(palette(None), "PNG"), [RED, BLUE]),
    "palette with a transparent colour": (encoded(palette(1), "PNG"), [RED, WHITE]),
    "palette with bytes": (encoded(palette(b"\x80\xff"), "PNG"), [PINK, BLUE]),
    "gif": (encoded(palette(1), "GIF", transparency=1), [RED, WHITE]),
    "RGBA": (encoded(of("RGBA", (*RED, 255), (9, 9, 9, 0)), "PNG"), [RED, WHITE]),
    "opaque RGBA": (encoded(of("RGBA", (*RED, 255), (*BLUE, 255)), "PNG"), [RED, BLUE]),
    "LA": (encoded(of("LA", (7, 255), (7, 0)), "PNG"), [(7, 7, 7), WHITE]),
    "RGB with a transparent colour": (
        encoded(of("RGB", RED, BLUE), "PNG", transparency=BLUE),
        [RED, WHITE],
    ),
    "CMYK": (encoded(of("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "TIFF"), [RED, BLUE]),
    "bits": (encoded(of("1", 0, 255), "PNG"), [(0, 0, 0), WHITE]),
}


@pytest.mark.parametrize(("content", "expected"), COLOURS.values(), ids=COLOURS)
def test_colours_are_those_that_are_seen(
    content: bytes, expected: list[tuple[int, int, int]]
) -> None:
    image = decode(content, "RGB")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[0].astype(int) - expected).max() <= 1
    assert decode(content, "L").mode == "L"


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = np.asarray(decode(encoded(cmyk, "JPEG", quality=95), "RGB")).astype(int)
    assert np.abs(pixels - RED).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photographs_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :16] = 255
    image = decode(encoded(Image.fromarray(pixels).convert("RGB"), kind, exif=exif), "L")
    assert image.size == ((32, 16) if orientation <= 4 else (16, 32))
    seen = np.asarray(image)
    # The white quarter of the stored image goes where the tag says.
    corner = {1: (3, 3), 2: (3, -4), 3: (-4, -4), 4: (-4, 3)}
    corner |= {5: (3, 3), 6: (3, -4), 7: (-4, -4), 8: (-4, 3)}
    assert seen[corner[orientation]] > 200
    assert (seen > 128).mean() == pytest.approx(0.25, abs=0.03)


def test_damaged_exif_does_no_harm() -> None:
    content = encoded(Image.fromarray(GREYS), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(decode(content, "L")), GREYS)


def test_images_of_data_sets_by_name_are_decoded_alike() -> None:
    assert np.array_equal(np.asarray(decode(encode_lossless(sixteen(GREYS)), "L")), GREYS)
    white = np.asarray(decode(encode_lossless(of("LA", (7, 0))), "RGB"))
    assert white.tolist() == [[list(WHITE)]]
