"""Runs of visitors: started, watched, stopped from elsewhere, and finished in any case."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from countgen.demo.watch import Watch
from countgen.errors import UsageError

if TYPE_CHECKING:
    from countgen.demo.wishes import Wish
    from countgen.engine.run import Run
    from countgen.pipeline import CountGuidedPipeline

log = logging.getLogger("countgen")
FAULT = "Something went wrong inside the page; the server's log says what. Try again, or another prompt."


class Ticket:
    """One visitor's hold on what runs for them; ``stop`` may be called from any thread.

    Attributes:
        show: makes what the page is to show of what there is so far; None before there is anything.
        done: set when nothing runs any more.
    """

    def __init__(self, visitor: str, tab: str) -> None:
        self.key = (visitor, tab)
        self.show: Callable[[], Any] | None = None
        self.done = threading.Event()
        self.abandoned = False
        self._stopped = threading.Event()
        self._runs: list[Run] = []
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def add(self, run: Run) -> None:
        """Stop this run too, at once if it is late."""
        with self._lock:
            self._runs = [run]
            if self.stopped:
                run.cancel()

    def stop(self) -> None:
        """Cancel what runs; it ends before its next batch."""
        with self._lock:
            self._stopped.set()
            for run in self._runs:
                run.cancel()


class Tickets:
    """Who is at work, by visitor and tab.

    The page's server closes the iterator of a visitor who presses Stop, and calls the button's own function,
    in no certain order. So the ticket of an iterator that was closed early waits here for that function.
    """

    MOST = 16
    """Closed tickets that are kept for their Stop; clients that only cancel never ask."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], list[Ticket]] = {}
        self._closed: OrderedDict[tuple[str, str], Ticket] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, visitor: str, tab: str) -> Iterator[Ticket]:
        """A ticket for as long as something runs."""
        ticket = Ticket(visitor, tab)
        with self._lock:
            self._closed.pop(ticket.key, None)
            self._open.setdefault(ticket.key, []).append(ticket)
        try:
            yield ticket
        finally:
            ticket.stop()
            with self._lock:
                left = self._open[ticket.key]
                left.remove(ticket)
                if not left:
                    del self._open[ticket.key]
                if ticket.abandoned:
                    self._closed[ticket.key] = ticket
                    while len(self._closed) > self.MOST:
                        self._closed.popitem(last=False)
            if not ticket.abandoned:
                ticket.done.set()

    def stop(self, visitor: str, tab: str, wait: float = 60.0) -> Ticket | None:
        """Stop what a visitor runs in a tab, and wait until it has ended; the last one that ran."""
        key = (visitor, tab)
        with self._lock:
            tickets = list(self._open.get(key, ()))
            if not tickets and key in self._closed:
                tickets = [self._closed[key]]
        for ticket in tickets:
            ticket.stop()
        for ticket in tickets:
            ticket.done.wait(wait)
        with self._lock:
            self._closed.pop(key, None)
        return tickets[-1] if tickets else None

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._open.values()))


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
        ticket.done.set()


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
