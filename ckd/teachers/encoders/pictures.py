"""Opening pictures of any kind and size as RGB, with a bound on memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

#: What a picture with an alpha channel is laid upon: product pictures are shown on white.
BACKGROUND = (255, 255, 255, 255)

#: Formats of pictures. Pillow knows more, among them such as start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

#: Longest a picture may be, in multiples of its shorter side.
LONGEST_SHAPE = 100

#: Changes when the same bytes would be opened to other pixels; part of the image encoder's identity.
VERSION = 1


@dataclass(frozen=True)
class Picture:
    """A picture, opened.

    Attributes:
        rgb: the pixels, or None where there is no picture to be had.
        trait: `grey-scale`, `alpha`, `palette` or `downscaled` where the picture needed it, else `rgb`; without
            pixels, why: `undecodable` or `too large`.
    """

    rgb: Image.Image | None
    trait: str


def open_picture(data: bytes, max_pixels: int) -> Picture:
    """The RGB picture in `data`, turned as its EXIF says.

    A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size; anything else of more,
    and what stays above, is refused before its pixels are decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        huge = image.width * image.height > max_pixels
        if huge:
            # JPEG alone decodes at a fraction: the call does nothing for other formats. It stays at or above the size
            # that it is asked for and steps by two, so it is asked for half of what is allowed.
            scale = (max_pixels / (image.width * image.height)) ** 0.5 / 2
            image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
            if image.width * image.height > max_pixels:
                return Picture(None, "too large")
        image.load()
        trait = "downscaled" if huge else _trait(image)
        return Picture(_crop(_to_rgb(ImageOps.exif_transpose(image))), trait)
    except Image.DecompressionBombError:
        return Picture(None, "too large")
    # Pillow's readers raise nearly anything on broken files: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception:
        return Picture(None, "undecodable")


@cache
def _formats() -> list[str]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _crop(image: Image.Image) -> Image.Image:
    """The middle of a picture whose longer side is out of all proportion: its shorter side may be scaled up later."""
    width, height = (min(side, LONGEST_SHAPE * other) for side, other in (image.size, image.size[::-1]))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@contextmanager
def pillow_warnings_counted() -> Iterator[None]:
    """Pillow's warnings about odd files go unheard here: each such file is opened or counted.

    Filters are global to the process: enter once around all threads that open pictures.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def _trait(image: Image.Image) -> str:
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return "alpha"
    if image.mode == "P":
        return "palette"
    return "grey-scale" if image.mode in ("1", "L", "F", "I") or image.mode.startswith("I;16") else "rgb"


def _to_rgb(image: Image.Image) -> Image.Image:
    if _trait(image) == "alpha":
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, BACKGROUND), over).convert("RGB")
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        # Pillow would clip these to white. 16-bit values keep their high byte, others are stretched to their range.
        values = np.asarray(image).astype(np.float64)
        low, high = (0.0, 65535.0) if image.mode != "F" and values.max() <= 65535 else (values.min(), values.max())
        scaled = (values - low) / max(high - low, 1e-12) * 255
        image = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    return image.convert("RGB")
