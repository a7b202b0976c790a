"""Decodes camera images safely and no larger than needed: header check, scaled JPEG decode, exact resize."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image

from .errors import DataError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 50_000_000
"""Images that claim more are refused before memory is taken for them."""

Pixels = tuple[np.ndarray, int, int, float]
"""uint8 (H, W, 3) as decoded, then width and height as stored, then decoded pixels per stored pixel."""


def decode_image(
    raw: bytes | memoryview, name: str, size: tuple[int, int] | None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Decodes a JPEG or PNG, by the extension of `name`, to `size` = (width, height) or, if None, as stored.

    Returns the image as uint8 (3, H, W), its stored (width, height), and float32 (2,): decoded pixels per
    stored pixel in x and y, by which intrinsics are multiplied (the corner of the image stays at 0, 0).
    Only three-channel colour is accepted. An EXIF orientation is not applied: calibration refers to pixels as
    stored. Raises `DataError` on an empty, truncated, wrongly named, grey, CMYK or oversized image.
    """
    if not len(raw):
        raise DataError("the image is empty (0 bytes)")
    kind = "PNG" if name.endswith(".png") else "JPEG"
    magic = b"\x89PNG\r\n\x1a\n" if kind == "PNG" else b"\xff\xd8\xff"
    if raw[: len(magic)] != magic:
        raise DataError(f"the name says {kind}, the content begins with {bytes(raw[:8])!r}")
    if kind == "JPEG" and simplejpeg is not None:
        pixels, width, height, scale = _simplejpeg(raw, size, max_pixels)
    else:
        if kind == "JPEG":
            warnings.warn("simplejpeg is not installed: Pillow decodes JPEGs, about 3x slower", stacklevel=2)
        pixels, width, height, scale = _pillow(raw, kind, size, max_pixels)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    target = (height, width) if size is None else (size[1], size[0])
    ratio = np.array([target[1] / image.shape[2], target[0] / image.shape[1]], dtype=np.float32)
    if image.shape[1:] != target:
        # The torch kernel for uint8 is about four times as fast as Pillow's resize.
        image = torch.nn.functional.interpolate(image[None], size=target, mode="bilinear", antialias=True)[0]
    return image.contiguous().numpy(), (width, height), ratio * np.float32(scale)


def _simplejpeg(raw: bytes | memoryview, size: tuple[int, int] | None, max_pixels: int) -> Pixels:
    assert simplejpeg is not None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
        height, width = int(height), int(width)
        _check(width, height, colours, ("YCbCr", "RGB"), max_pixels)
        if size is None:
            return simplejpeg.decode_jpeg(raw), width, height, 1.0
        pixels = simplejpeg.decode_jpeg(raw, min_width=size[0], min_height=size[1])
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"damaged JPEG ({error})") from None
    # libjpeg decodes at M/8 of the size, rounded up: a last column may lie partly outside of the stored image.
    found = pixels.shape[:2]
    eighths = next(m for m in range(1, 17) if (-(-height * m // 8), -(-width * m // 8)) == found)
    return pixels, width, height, eighths / 8


def _pillow(raw: bytes | memoryview, kind: str, size: tuple[int, int] | None, max_pixels: int) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(raw), formats=(kind,))
        width, height = image.size
        _check(width, height, image.mode, ("RGB",), max_pixels)
        if size is not None:
            image.draft("RGB", size)  # JPEG only: the smallest of 1/1, 1/2, 1/4, 1/8 that covers the target
        scale = next(part for part in (1, 2, 4, 8) if -(-width // part) == image.width)
        return np.array(image), width, height, 1 / scale
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"too many pixels ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"damaged {kind} ({error})") from None


def _check(width: int, height: int, colours: str, allowed: tuple[str, ...], max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"the header claims {width}x{height} pixels, at most {max_pixels} are decoded")
    if colours not in allowed:
        raise DataError(f"colour space {colours}: images must be three-channel RGB or YCbCr; convert them to RGB")
