"""Pictures from anywhere, read as people see them, or refused with a sentence that names the file.

A file may come from a stranger: its size is bounded before anything is decoded, only the three decoders that
are needed are asked, and whatever a damaged file makes them do ends as one sentence.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FORMATS: Final = ("PNG", "JPEG", "WEBP")
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
"""Of the files that a folder is searched for, in lower case."""
MAX_BYTES = 2**29
"""Largest file that is opened."""
MAX_SIDE = 16_384
MAX_PIXELS = 2**26
"""Most pixels of a picture, 8192 x 8192: beyond it nothing is decoded."""
MIN_SIDE = 8
"""Fewest pixels a side: no object can be told in less, and networks have no answer for it."""
MAX_ASPECT = 100
"""Longest side over shortest: networks squeeze a narrower strip to nothing."""
_SIGNATURES: Final = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML file"),
    (b"8BPS", "a Photoshop file"),
    (b"version https://git-lfs", "a pointer of Git LFS, whose picture was not fetched"),
)


class PictureError(ValueError):
    """A file that is no picture which can be counted; the message names the file."""


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as people see it: RGB, 8 bit, turned as its EXIF says, on white where it is transparent.

    16 bits a channel become 8; grey becomes RGB; CMYK goes through the colour profile that it carries. RGB is
    taken as it is, without its profile, as detectors are trained.

    Args:
        max_pixels: beyond so many nothing is decoded.

    Raises:
        PictureError: no file, another format, animated, too small, too large, too narrow, or damaged.
    """
    data = _contents(path)
    with _opened(path, data) as image:
        _check(path, image, max_pixels)
        image.load()
        return _as_seen(image)


def picture_settings(path: Path) -> dict[str, Any]:
    """What ``countgen.drawing.png`` wrote into a picture about how it was made; empty where there is none.

    Raises:
        PictureError: no file, or no picture.
    """
    with _opened(path, _contents(path)) as image:
        _check(path, image)
        written = image.info.get("countgen")
    try:
        found = json.loads(written) if isinstance(written, str) else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """An RGB picture as critics take it: float32 in [0, 1]."""
    import torch

    pixels = torch.from_numpy(np.asarray(image).copy())
    return pixels.permute(2, 0, 1).float() / 255


def _contents(path: Path) -> bytes:
    """The bytes of a file, all at once: its size and its kind are known before it is read."""
    try:
        about = os.stat(path)
        if stat.S_ISDIR(about.st_mode):
            raise PictureError(f"{path} is a folder, not a picture")
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            raise PictureError(f"{path} is no ordinary file")
        if about.st_size > MAX_BYTES:
            raise PictureError(
                f"{path} has {about.st_size / 2**20:,.0f} MiB; at most {MAX_BYTES // 2**20} are read"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        if isinstance(error, PictureError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"{path} cannot be read: {reason[:1].lower()}{reason[1:]}") from None
    if not data:
        raise PictureError(f"{path} is empty")
    return data


@contextmanager
def _opened(path: Path, data: bytes) -> Iterator[Image.Image]:
    """The picture, its header read; whatever the decoders raise meanwhile becomes a PictureError."""
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is refused by our own bounds, or harmless to what is read here.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                yield image
    except PictureError:
        raise
    except (UnidentifiedImageError, ImportError):  # ultralytics then looks for pi_heif
        kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), "")
        if not kind and data[4:8] == b"ftyp":
            kind = "an AVIF, HEIC or film"
        if not kind and any(data.startswith(start) for start in (b"\x89PNG", b"\xff\xd8", b"RIFF")):
            raise PictureError(f"{path} is damaged: its header cannot be read") from None
        told = f"is {kind}" if kind else "is no picture"
        raise PictureError(f"{path} {told}; PNG, JPEG and WebP can be counted") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path} is too large: {_bounds(MAX_PIXELS)}") from None
    except MemoryError:
        raise PictureError(f"{path} does not fit the memory") from None
    except Exception as error:  # decoders raise of all kinds on damaged files
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise PictureError(f"{path} is damaged: {reason}") from None


def _bounds(max_pixels: int) -> str:
    return f"at most {MAX_SIDE} pixels a side and {max_pixels:,} in all are decoded"


def _check(path: Path, image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse by the header alone what is not to be decoded."""
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        bounds = _bounds(max_pixels)
        raise PictureError(f"{path} is too large with {width} x {height}: {bounds}")
    if min(width, height) < MIN_SIDE:
        raise PictureError(
            f"{path} is too small with {width} x {height}: at least {MIN_SIDE} pixels a side are needed"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(
            f"{path} is too narrow with {width} x {height}: cut it into parts, and count those"
        )
    # A JPEG of several pictures holds a photo and its previews: the first one is what people see.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise PictureError(
            f"{path} is animated, with {frames} frames; save the one that is to be counted as a PNG"
        )


def _as_seen(image: Image.Image) -> Image.Image:
    image = _turned(image)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """As EXIF says; where that is unreadable, as it lies: a damaged note spoils no picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bit; Pillow's own conversion clips at 255 in some modes and cuts in others."""
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _from_cmyk(image: Image.Image) -> Image.Image:
    """Through the profile in the file where there is a readable one, else by the plain formula."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            from PIL import ImageCms

            ink, screen = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, ink, screen, outputMode="RGB")
            if converted is not None:
                return converted
        except Exception:  # a profile that cannot be read, or a Pillow without littleCMS
            return image.convert("RGB")
    return image.convert("RGB")
