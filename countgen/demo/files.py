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
    from countgen.evaluation.pictures import PictureError, read_picture

    path, name = uploaded(value, "the picture", limits.upload)
    try:
        return read_picture(path, limits.pixels)
    except PictureError as error:
        raise UsageError(str(error).replace(str(path), name[:60])) from None


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
