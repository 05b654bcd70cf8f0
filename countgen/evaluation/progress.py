"""How far a run is: its rate, and how long it will take, on stderr."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

EVERY = 15.0
"""Seconds between lines where there is no terminal, and between looks at the other processes' results."""


class Progress:
    """Tells of all processes' pictures by the lines of their results."""

    def __init__(self, messages: Console, run: Path, total: int, shown: bool) -> None:
        """Begin at no picture.

        Args:
            total: pictures that there will be.
            shown: whether this process is the one that tells.
        """
        self.messages, self.run, self.total, self.shown = messages, run, total, shown
        self._offsets: dict[Path, int] = {}
        self._rows = 0
        self.begin()
        self._status = messages.status("") if shown and messages.is_terminal else None

    def begin(self) -> None:
        """Rates count from here on: models are loaded, and the first picture is about to be drawn."""
        self._first, self._begun = self._count(), time.monotonic()
        self._told = self._begun

    def __enter__(self) -> Progress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, method: str) -> None:
        """Something was finished by this method; told of now and then."""
        now = time.monotonic()
        if not self.shown or now - self._told < (1.0 if self._status else EVERY):
            return
        self._told = now
        line = f"{method}: {self.line(self._count(), now - self._begun)}"
        if self._status:
            self._status.update(line)
        else:
            self.messages.print(line, markup=False, soft_wrap=True)

    def line(self, done: int, seconds: float) -> str:
        """So many pictures of all, the rate since the start, and the time that the rest takes at it."""
        share = f"{done} of {self.total} pictures ({100 * done // max(1, self.total)}%)"
        new = done - self._first
        if new <= 0 or seconds <= 0:
            return share
        rate = new / seconds
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"
        return f"{share}, {pace}, {span(max(0, self.total - done) / rate)} left"

    def _count(self) -> int:
        """Lines in all results, of which only what is new is read."""
        for path in self.run.glob("results.rank*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                while data := file.read(1 << 20):
                    self._rows += data.count(b"\n")
                self._offsets[path] = file.tell()
        return self._rows


def span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"
