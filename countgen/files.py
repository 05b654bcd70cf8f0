"""Finished pictures in a folder: nothing that is there is lost, and nothing is ever half written.

A file is written under a temporary name of its own, opened exclusively, and then linked to its final name,
which fails where that name is taken, by another process or by a symbolic link. So several processes may
write to one folder at once.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from pathlib import Path

STALE = 3600.0
"""Seconds after which a partial file belongs to a run that was killed."""
_PARTIAL = re.compile(r"\.countgen-[0-9a-f]{16}\.partial")
_NUMBERED = re.compile(r"(\d{3,9})(?:-compare)?\.png")
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class PictureFolder:
    """A folder of numbered pictures, each with a side-by-side: 000.png and 000-compare.png.

    Attributes:
        overwrite: number from 000 and replace what is there, instead of going on behind the last number.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder, self.overwrite = folder, overwrite
        self._first: int | None = None

    def check(self) -> None:
        """Find out before the work, not after it; makes nothing, and removes stale partial files.

        Raises:
            OSError: the folder could not be written to.
        """
        if not self.folder.is_absolute():
            try:
                os.getcwd()
            except FileNotFoundError:
                raise FileNotFoundError(
                    errno.ENOENT,
                    "the working directory is gone; name an absolute folder",
                    str(self.folder),
                ) from None
        place = self.folder
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        if place == self.folder:
            _remove_stale(place)

    def keep(self, index: int, picture: bytes, comparison: bytes | None = None) -> Path:
        """Write a picture of this run and its side-by-side; where the picture is.

        In an empty folder picture ``index`` has that number.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            path, beside = self._paths(index)
            write(path, picture, replace=True)
            if comparison is None:
                beside.unlink(missing_ok=True)
            else:
                write(beside, comparison, replace=True)
            return path
        if self._first is None:
            self._first = self._behind_the_last()
        number = self._first + index
        while True:
            path, beside = self._paths(number)
            try:
                if os.path.lexists(beside):
                    raise FileExistsError
                write(path, picture)
                break
            except FileExistsError:
                number = max(number + 1, self._behind_the_last())
        if comparison is not None:
            write(beside, comparison)
        return path

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:03d}.png", self.folder / f"{number:03d}-compare.png"

    def _behind_the_last(self) -> int:
        found = (_NUMBERED.fullmatch(name) for name in os.listdir(self.folder))
        return max((int(match[1]) + 1 for match in found if match), default=0)


def write(path: Path, data: bytes, replace: bool = False) -> None:
    """Write a file, all or nothing.

    Raises:
        FileExistsError: the name is taken, and ``replace`` is False.
        OSError: the disk is full, or the folder cannot be written to; ``path`` is in the error.
    """
    partial = path.with_name(f".countgen-{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(partial, flags, 0o666), "wb")
        try:
            with file:
                file.write(data)
            if replace:
                os.replace(partial, path)
            else:
                _link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        # Of the file that was asked for: a full disk names none, and the partial one means nothing to users.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _link(partial: Path, path: Path) -> None:
    """Give a finished file its name, unless that is taken."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: claim the name with an empty file of our own, and replace that.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(partial, path)


def _remove_stale(folder: Path) -> None:
    for entry in os.scandir(folder):
        if _PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            try:
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                    os.unlink(entry)
            except OSError:  # another process was faster, or it is not ours after all
                continue


def shown(path: Path) -> str:
    """A path as it is reported: relative to the working directory where there is a way from there."""
    try:
        return os.path.relpath(path)
    except (ValueError, OSError):  # another drive, or a working directory that is gone
        return str(path)
