"""A run folder: what it was made with, a row and a picture for everything drawn, and how it is mended.

``run.json`` holds the configuration; every process appends to its own ``results.rank{r}.jsonl``, a row being
written when its picture lies under its final name. A row counts only with its picture.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from countgen import __version__
from countgen.errors import UsageError
from countgen.evaluation.runs import Row
from countgen.files import write

SCHEMA = 1
"""Version of the layout; a folder of another one is refused."""
NEEDED = ("method", "id", "image", "prompt", "nouns", "wanted", "picture", "config")
_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


class RunError(UsageError):
    """A folder that this run cannot be written to; the message says why, and what to do."""


@dataclass
class RunFolder:
    """One run, or several starts of it.

    Attributes:
        config: what changes a picture, and the counters; the same for all starts.
        done: keys of the pictures that are there (``picture_key``).
        texts: digests of the prompts that these were drawn from.
    """

    path: Path
    config: Mapping[str, Any]
    done: set[int] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Of the configuration."""
        return blake2b(json.dumps(self.config, sort_keys=True).encode(), digest_size=8).hexdigest()

    def check(self) -> None:
        """Find out before the work; makes nothing.

        Raises:
            RunError: something else is in the folder, or a run with another configuration or layout.
            OSError: the folder could not be written to.
        """
        place = self.path
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        if place != self.path:
            return
        if not (self.path / "run.json").exists():
            others = [name for name in os.listdir(self.path) if name != "queue"]
            if others:
                raise RunError(
                    f"{self.path} is no run folder and holds other files, such as {min(others)}; give a new "
                    "folder"
                )
            return
        self._compare(read_config(self.path))

    def begin(self, more: Mapping[str, Any]) -> None:
        """Write down what the run is made with, unless that is there already.

        Args:
            more: what may change between starts, as it is at the first.
        """
        versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
        record = {
            "schema": SCHEMA,
            "config": dict(self.config),
            "digest": self.digest,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {
                "countgen": __version__,
                "python": platform.python_version(),
                **versions,
            },
            **more,
        }
        try:
            write(self.path / "run.json", json.dumps(record, indent=1).encode() + b"\n")
        except FileExistsError:
            self._compare(read_config(self.path))

    def _compare(self, record: Mapping[str, Any]) -> None:
        config = record["config"]
        names = [name for name in self.config if self.config[name] != config.get(name)]
        if names:
            told = "; ".join(
                f"{name} {_told(config.get(name))} there, {_told(self.config[name])} here"
                for name in names
            )
            raise RunError(
                f"{self.path} holds a run with other settings ({told}); give the same, or another folder"
            )

    # -- rows ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """All whole rows, file by file.

        Raises:
            RunError: a line that is no row of this run.
        """
        for path in self._files():
            for _, row in _whole_rows(path):
                if row["config"] != self.digest:
                    raise RunError(f"{path} has rows of another run; give another folder")
                yield row

    def look(self) -> None:
        """Find out what is done already."""
        self.done.clear()
        self.texts.clear()
        for row in self.rows():
            self.done.add(picture_key(row["method"], row["id"], row["image"]))
            wanted = zip(row["nouns"], row["wanted"], strict=True)
            self.texts.add(text_key(row["id"], row["prompt"], wanted))

    def mend(self) -> None:
        """Take back what a kill left half done: a cut last line, rows without picture, partial files.

        Only while no process is at work in the folder.
        """
        for partial in self.path.glob("**/.countgen-*.partial"):
            partial.unlink(missing_ok=True)
        seen: set[int] = set()
        for path in self._files():
            cut_tail(path)
            kept, lost = [], False
            for start, row in _whole_rows(path):
                key = picture_key(row["method"], row["id"], row["image"])
                whole = key not in seen and (self.path / row["picture"]).is_file()
                lost = lost or not whole
                if whole:
                    seen.add(key)
                    kept.append(start)
            if lost:
                _keep_lines(path, kept)

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("results.rank*.jsonl"))


class Results:
    """The file that one process appends its rows to.

    A row is written in one go; where that fails, as on a full disk, what was written of it is taken back.
    """

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self.folder, self.path = folder, folder.path / f"results.rank{rank}.jsonl"
        if self.path.exists():
            cut_tail(self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.size = os.fstat(self._file).st_size

    def append(self, row: Row, picture: bytes) -> None:
        """Write a picture and its row; both are there afterwards, or neither counts.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; its name is in the error.
        """
        place = self.folder.path / row["picture"]
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, picture, replace=True)
        line = json.dumps({**row, "config": self.folder.digest}).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, self.size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.size += len(line)
        self.folder.done.add(picture_key(row["method"], row["id"], row["image"]))

    def close(self) -> None:
        os.close(self._file)


def read_config(run: Path) -> dict[str, Any]:
    """What a run folder says that it was made with.

    Raises:
        RunError: no run folder, or one of another schema version.
    """
    path = run / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = record["schema"], record["config"].items()
    except FileNotFoundError:
        raise RunError(f"{run} is no run folder: it has no run.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} cannot be read; give another folder") from None
    if schema != SCHEMA:
        raise RunError(
            f"{run} was written in layout {schema}, and this countgen reads layout {SCHEMA}; give another "
            "folder, or take the countgen that wrote it"
        )
    return dict(record)


def picture_key(method: str, prompt: str, image: int) -> int:
    """What a picture is known by within a run, in 64 bits."""
    return _digest(method, prompt, str(image))


def text_key(identity: str, prompt: str, wanted: Any) -> int:
    """What a prompt asks for under its id."""
    return _digest(identity, prompt, *(f"{noun}\x1e{count}" for noun, count in wanted))


def picture_name(method: str, prompt: str, image: int) -> str:
    """Where a picture lies in its run folder; any id makes a file name that no other one makes."""
    return f"pictures/{_safe(method)}/{_safe(prompt)}-{image}.png"


def _safe(name: str) -> str:
    if _SAFE.fullmatch(name) or not name:
        return name
    safe = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60]
    return f"{safe}-{_digest(name):016x}".lstrip("-")


def cut_tail(path: Path) -> None:
    """Drop a last line that was cut off."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at > 0:
            start = max(0, at - 4096)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at != end:
            file.truncate(at)


def _whole_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Offset and content of every line with an end.

    Raises:
        RunError: a line that is no row.
    """
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                missing = [name for name in NEEDED if name not in row]
            except (ValueError, TypeError):
                row, missing = {}, ["row"]
            if missing:
                raise RunError(
                    f"{path}, line {number} is not a row of a run ({missing[0]} is missing); give another "
                    "folder, or remove the line"
                )
            yield start, row
            start += len(line)


def _keep_lines(path: Path, starts: list[int]) -> None:
    with path.open("rb") as file:
        lines = []
        for start in starts:
            file.seek(start)
            lines.append(file.readline())
    write(path, b"".join(lines), replace=True)


def _digest(*parts: str) -> int:
    text = "\x1f".join(parts).encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def _told(value: Any) -> str:
    return "unset" if value is None else str(value)
