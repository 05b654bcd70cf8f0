"""The line of visitors before the device, and their runs: watched, stopped, and finished in any case."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from countgen.demo.watch import Watch
from countgen.errors import UsageError

if TYPE_CHECKING:
    from countgen.demo.wishes import Wish
    from countgen.engine.run import Run
    from countgen.pipeline import CountGuidedPipeline

log = logging.getLogger("countgen")
PATIENCE = 0.5
"""Seconds after which who waits is told again, and can be found to have gone."""
FAULT = "Something went wrong inside the page; the server's log says what. Try again, or another prompt."


class Ticket:
    """One visitor's place in the line for the device, and hold on what runs there.

    Attributes:
        abandoned: its run goes on though whoever watched has gone, and gives the device back at its end.
        replaced: the visitor has asked anew in the same tab; nothing of this one is to be shown any more.
    """

    def __init__(self, tickets: Tickets, visitor: str, tab: str) -> None:
        self.key = (visitor, tab)
        self.abandoned = self.replaced = False
        self._tickets = tickets
        self._stopped = threading.Event()
        self._run: Run | None = None
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def waiting(self) -> Iterator[int]:
        """How many are served before this one, twice a second, until it has the device or is stopped."""
        while not self.stopped:
            before = self._tickets.before(self, PATIENCE)
            if not before:
                return
            yield before

    def give_way(self) -> None:
        """Go to the end of the line; the device is for whoever is first now."""
        self._tickets.move_to_end(self)

    def give_back(self) -> None:
        """Leave the line."""
        self._tickets.remove(self)

    def add(self, run: Run) -> None:
        """What runs now; stopped at once if it is late."""
        with self._lock:
            self._run = run
            if self.stopped:
                run.cancel()

    def stop(self) -> None:
        """Cancel what runs, which ends before its next batch, or the waiting; from any thread."""
        with self._lock:
            self._stopped.set()
            if self._run is not None:
                self._run.cancel()


class Tickets:
    """The line before the device: first come, first served.

    Gradio has a queue of its own, but what it cancels for a visitor it finds by session and function, so
    that a Stop which arrives late ends the visitor's next request. Here a stopped request ends by itself,
    with what it has, whether it runs or waits.
    """

    def __init__(self, most: int) -> None:
        """A line in which so many may wait."""
        self.most = most
        self._line: list[Ticket] = []
        self._changed = threading.Condition()

    @contextmanager
    def open(self, visitor: str, tab: str, replacing: bool = False) -> Iterator[Ticket]:
        """A place at the end of the line, which is left again at the end of the context.

        Args:
            replacing: stop what the visitor runs or waits for in this tab.

        Raises:
            UsageError: the line is full.
        """
        ticket = Ticket(self, visitor, tab)
        with self._changed:
            if len(self._line) > self.most:
                raise UsageError(
                    f"the line before the device is full, with {self.most} waiting; try again in a minute"
                )
            earlier = [one for one in self._line if one.key == ticket.key] if replacing else []
            self._line.append(ticket)
        for one in earlier:
            one.replaced = True
            one.stop()
        try:
            yield ticket
        finally:
            ticket.stop()
            if not ticket.abandoned:
                ticket.give_back()

    def stop(self, visitor: str, tab: str) -> bool:
        """Stop what a visitor runs or waits for in a tab; False if that is nothing."""
        with self._changed:
            mine = [ticket for ticket in self._line if ticket.key == (visitor, tab)]
        for ticket in mine:
            ticket.stop()
        return bool(mine)

    def before(self, ticket: Ticket, seconds: float) -> int:
        """How many are before this one; 0 as soon as it is the first, else after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] is ticket, seconds)
            return self._line.index(ticket)

    def move_to_end(self, ticket: Ticket) -> None:
        with self._changed:
            self._line.remove(ticket)
            self._line.append(ticket)
            self._changed.notify_all()

    def remove(self, ticket: Ticket) -> None:
        with self._changed:
            self._line.remove(ticket)
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._line)


def watched(
    pipeline: CountGuidedPipeline, wish: Wish, ticket: Ticket, seconds: float
) -> Generator[tuple[Run, Watch], None, None]:
    """Draw what is wished for; after every batch the run and what has been seen.

    The run ends in any case: where this iterator is closed early, in a thread of its own, since what is
    unfinished is still verified, and whoever closes must not wait for that.

    Args:
        seconds: after which the run is cancelled.

    Raises:
        UsageError, UnknownNounError: a request that the pipeline refuses.
    """
    run = pipeline.stream(wish.prompt, **wish.options())
    watch, begun = Watch(run.jobs), time.monotonic()
    ticket.add(run)
    ended = False
    try:
        yield run, watch
        for state in run:
            watch.see(state)
            yield run, watch
            if time.monotonic() - begun > seconds:
                run.cancel()
        run.close()
        ended = True
    finally:
        if not ended:
            run.cancel()
            ticket.abandoned = True
            threading.Thread(target=_finish, args=(run, ticket), daemon=True).start()


def _finish(run: Run, ticket: Ticket) -> None:
    try:
        run.close()
    except Exception:
        log.exception("a stopped run did not end well")
    finally:
        ticket.give_back()


def sentence_of(error: Exception) -> str:
    """What to tell a visitor of an error; a fault of the program's own goes to the log in full."""
    from countgen.cli.commands import explain

    if isinstance(error, UsageError):
        return _capital(str(error))
    code, sentence = explain(error)
    if code and not isinstance(error, OSError):
        return _capital(sentence)
    log.error("a request failed", exc_info=error)
    return FAULT


def _capital(sentence: str) -> str:
    sentence = sentence[:1].upper() + sentence[1:]
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."
