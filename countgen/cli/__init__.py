"""The command line, one file a command; ``commands`` puts them together.

This file is what the console script imports, and imports next to nothing itself, so that Ctrl-C is one line
from the start.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from countgen._collector import paused_collector

Handler = Callable[[int, FrameType | None], Any]
INTERRUPTED = "countgen: interrupted; what is finished is kept"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 usage error, 3 not exact with --strict.

    Args:
        arguments: instead of the process's own.
    """
    if arguments is None:
        _exchange_handler(signal.default_int_handler, _leave)
        _tidy_environment()
        if not _has_working_directory():  # torch's libraries cannot be loaded from there either
            print(
                "countgen: the working directory is gone; change to one that exists",
                file=sys.stderr,
            )
            return 1
    try:
        with paused_collector():
            from countgen.cli.commands import run

        try:
            return run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has left, as ``head`` does
        if arguments is None and sys.stdout is not None:
            # What is still buffered would raise again at the interpreter's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        if arguments is None:
            gc.freeze()  # the process ends: its last search for garbage would take half a second


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """While files are written: Ctrl-C raises KeyboardInterrupt, instead of ending the process at once."""
    exchanged = _exchange_handler(_leave, signal.default_int_handler)
    try:
        yield
    finally:
        if exchanged:
            _exchange_handler(signal.default_int_handler, _leave)


def _exchange_handler(before: Handler, after: Handler) -> bool:
    """Whether Ctrl-C was handled as ``before``, and is as ``after`` now; another's handler stays."""
    try:
        if signal.getsignal(signal.SIGINT) is not before:
            return False
        signal.signal(signal.SIGINT, after)
    except ValueError:  # not in the main thread
        return False
    return True


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process with one line, where there is nothing to be finished.

    An exception would come up in the middle of an import, or in a callback that cannot raise it.
    """
    cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # a spinner has hidden it
    try:
        os.write(2, cursor + INTERRUPTED.encode() + b"\n")
    finally:
        os._exit(1)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _tidy_environment() -> None:
    """Make what libraries trip over harmless: a width of nothing, and letters that the terminal lacks."""
    if not os.environ.get("COLUMNS", "80").isdecimal() or int(os.environ.get("COLUMNS", "80")) < 20:
        del os.environ["COLUMNS"]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
