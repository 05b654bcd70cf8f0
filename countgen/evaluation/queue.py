"""Which process draws what: prompts are handed out one by one, through files of the run folder.

No process talks to another. Each holds a lock on a file of its own as long as it lives, which the system
takes back however it ends, and a cursor into the list says what was handed out. So kill -9 at any time loses
no prompt: when all that live have nothing left to draw, and one has died at work, they go through the list
once more, for whatever has no result. On networked file systems this needs locks that hold between machines
(NFS 4, Lustre and GPFS as they usually are set up).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from countgen.errors import UsageError

PATIENCE = 600.0
"""Seconds to wait for the lock of the cursor, which is held for moments, but when a run folder is mended."""
POLL = 0.3
"""Seconds between looks whether the others are done."""
Standing = Literal["drawing", "done"]


class BusyError(UsageError):
    """Another run writes to the folder."""


@dataclass
class _State:
    """What all processes of a run share.

    Attributes:
        plan: what is drawn; processes with another plan are not of this run.
        sweep: how often the list was gone through.
        next: by method, the position of the prompt that is handed out next.
        ranks: those that take part, with what they do.
        summed: one of them sums the results up.
    """

    plan: str
    sweep: int = 0
    next: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, Standing] = field(default_factory=dict)
    summed: bool = False


class Queue:
    """One process's place in a run; a context that is left when the process has nothing more to do."""

    def __init__(self, folder: Path, rank: int, plan: str) -> None:
        self.folder, self.rank, self.plan = folder, rank, plan
        self._state_path = folder / "state.json"
        self._guard = FileLock(folder / "state.lock", timeout=PATIENCE, mode=0o666)
        self._own = self._lock_of(rank)
        self._sweep = 0

    @contextmanager
    def joined(self, prepare: Callable[[bool], None]) -> Iterator[Queue]:
        """Take part.

        Args:
            prepare: called with whether this process is the only one, while no other can join or write the
                cursor: the first one may mend what a killed run has left.

        Raises:
            BusyError: another run is at work here.
        """
        try:
            with self._guarded():
                others = [r for r in self._ranks_on_disk() if r != self.rank and self._lives(r)]
                state = self._read()
                self._take_own_place(bool(others), state)
                try:
                    prepare(not others)
                    if not others or state is None:
                        state = _State(self.plan)
                    state.ranks[str(self.rank)] = "drawing"
                    self._sweep = state.sweep
                    self._write(state)
                except BaseException:
                    self._own.release()
                    raise
            yield self
        finally:
            self._own.release()

    def positions(self, method: str) -> Iterator[int]:
        """Positions in the list for this process to draw, ascending, without an end."""
        while True:
            with self._guarded():
                state = self._read_own()
                if state.sweep != self._sweep:  # the others have begun anew without this process
                    return
                position = state.next.get(method, 0)
                state.next[method] = position + 1
                self._write(state)
            yield position

    def goes_on(self) -> bool:
        """Wait until all have drawn what they took; whether the list is to be gone through once more."""
        with self._guarded():
            state = self._read_own()
            state.ranks[str(self.rank)] = "done"
            self._write(state)
        while True:
            with self._guarded():
                state = self._read_own()
                if state.sweep != self._sweep:
                    self._sweep = state.sweep
                    return True
                alive = {r for r in state.ranks if int(r) == self.rank or self._lives(int(r))}
                if all(state.ranks[r] == "done" for r in alive):
                    dead = [r for r, does in state.ranks.items() if does != "done"]
                    if not dead:
                        return False
                    state.ranks = {r: "drawing" for r in sorted(alive)}
                    state.sweep, state.next = state.sweep + 1, {}
                    self._write(state)
                    self._sweep = state.sweep
                    return True
            time.sleep(POLL)

    def is_last(self) -> bool:
        """Whether it falls to this process to sum up; true for exactly one."""
        with self._guarded():
            state = self._read_own()
            first, state.summed = not state.summed, True
            self._write(state)
            return first

    # -- files --------------------------------------------------------------------------------------

    def _take_own_place(self, others: bool, state: _State | None) -> None:
        run = self.folder.parent
        busy = f"another run is writing to {run}; wait for its end, or give another folder"
        if others and (state is None or state.plan != self.plan):
            raise BusyError(busy)
        try:
            self._own.acquire(blocking=False)
        except Timeout:
            raise BusyError(busy) from None

    def _lock_of(self, rank: int) -> FileLock:
        return FileLock(self.folder / f"rank{rank}.lock", mode=0o666)

    def _ranks_on_disk(self) -> list[int]:
        names = (path.stem.removeprefix("rank") for path in self.folder.glob("rank*.lock"))
        return [int(name) for name in names if name.isdecimal()]

    def _lives(self, rank: int) -> bool:
        lock = self._lock_of(rank)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            self._guard.acquire()
        except Timeout:
            raise BusyError(
                f"{self._state_path} has been locked for {PATIENCE:.0f} seconds; the folder's file "
                "system does not give locks back: take another folder, or one process"
            ) from None
        try:
            yield
        finally:
            self._guard.release()

    def _read(self) -> _State | None:
        try:
            return _State(**json.loads(self._state_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _read_own(self) -> _State:
        state = self._read()
        if state is None or state.plan != self.plan or str(self.rank) not in state.ranks:
            raise BusyError(
                f"{self._state_path} was changed by somebody else while this run was at work; run it again"
            )
        return state

    def _write(self, state: _State) -> None:
        """In place and in one go, in the same length or longer, so that no moment has half of it."""
        text = json.dumps(asdict(state)).encode()
        size = self._state_path.stat().st_size if self._state_path.exists() else 0
        file = os.open(self._state_path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(file, text.ljust(max(size, 256)))
        finally:
            os.close(file)
