"""Files that come in, read with care, and files that go out, kept for an hour."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.demo.limits import Limits, uploaded
from countgen.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

PICTURES = ("PNG", "JPEG", "WEBP")
KEPT = 3600.0
"""Seconds for which a file can be downloaded."""


class Shelf:
    """A folder of its own for finished files; what is older than an hour is removed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="countgen-page-"))
        self._tidy = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def keep(self, name: str, data: bytes) -> str:
        """Write a file under a path that nobody can guess; the path."""
        self.tidy()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        path = folder / name
        path.write_bytes(data)
        return str(path)

    def tidy(self, older: float = KEPT) -> None:
        """Remove what is older than so many seconds."""
        for entry in self.folder.iterdir():
            try:
                if time.time() - entry.stat().st_mtime > older:
                    shutil.rmtree(entry, ignore_errors=True)
            except OSError:  # another thread was faster
                continue


def open_picture(value: Any, limits: Limits) -> Image.Image:
    """An uploaded picture in RGB, its size read before it is decoded.

    Raises:
        UsageError: no picture, another format, damaged, or too large.
    """
    from PIL import Image, ImageOps

    path, name = uploaded(value, "the picture", limits.upload)
    shown = name[:60]
    try:
        with Image.open(path, formats=PICTURES) as file:
            if file.width * file.height > limits.pixels:
                raise UsageError(
                    f"{shown} has {file.width} x {file.height} pixels, and {limits.pixels / 1e6:.0f} million "
                    "are allowed; make it smaller"
                )
            if min(file.size) < 8 or max(file.size) > 50 * min(file.size):
                raise UsageError(
                    f"{shown} has {file.width} x {file.height} pixels, which is no picture to count in"
                )
            return ImageOps.exif_transpose(file).convert("RGB")
    except UsageError:
        raise
    except Image.DecompressionBombError:
        raise UsageError(
            f"{shown} has more pixels than are allowed ({limits.pixels / 1e6:.0f} million); make it smaller"
        ) from None
    except Exception as error:  # whatever a file made to break a decoder raises
        raise UsageError(
            f"{shown} cannot be read as a picture ({type(error).__name__}); choose a PNG, JPEG or WebP file"
        ) from None


def read_picture_settings(value: Any, limits: Limits) -> Mapping[str, Any]:
    """The settings that a picture of countgen carries; they come from a stranger and are to be checked.

    Raises:
        UsageError: no such picture.
    """
    from countgen import provenance

    path, name = uploaded(value, "the picture", limits.upload)
    try:
        return provenance.read(path).settings
    except UsageError as error:
        raise UsageError(str(error).replace(str(path), name[:60])) from None
    except Exception as error:
        raise UsageError(
            f"{name[:60]} cannot be read as a picture ({type(error).__name__}); drop a PNG file "
            "that was made here"
        ) from None


def archive(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A zip file."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files:
            packed.writestr(name, content)
    return data.getvalue()
