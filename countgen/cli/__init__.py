"""The command line, one file a command; ``commands`` puts them together.

This file is what the console script imports, and imports next to nothing itself, so that Ctrl-C is one line
from the start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = "countgen: interrupted; finished pictures are kept"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 usage error, 3 not exact with --strict.

    Args:
        arguments: instead of the process's own.
    """
    if arguments is None:
        leave_on_interrupt()
        _tidy_environment()
    try:
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
            leave_on_interrupt()


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, with one line: while there is nothing to be finished.

    An exception would come up in the middle of an import, or in a callback that cannot raise it.
    """
    _handle(signal.default_int_handler, _leave)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: while files are written."""
    _handle(_leave, signal.default_int_handler)


def _handle(before: object, after: object) -> None:
    """Exchange the handler, unless the user of this module or its parent process has set another."""
    try:
        if signal.getsignal(signal.SIGINT) is before:
            signal.signal(signal.SIGINT, after)  # type: ignore[arg-type]
    except ValueError:  # not in the main thread
        return


def _leave(number: int, frame: FrameType | None) -> None:
    cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # a spinner has hidden it
    try:
        os.write(2, cursor + INTERRUPTED.encode() + b"\n")
    finally:
        os._exit(1)


def _tidy_environment() -> None:
    """Make what libraries trip over harmless: a width of nothing, and letters that the terminal lacks."""
    if not os.environ.get("COLUMNS", "80").isdecimal() or int(os.environ.get("COLUMNS", "80")) < 20:
        del os.environ["COLUMNS"]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
