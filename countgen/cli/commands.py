"""The commands by name, and one sentence for whatever a user can cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import tyro
from rich.console import Console

from countgen._torchvision import hide_unloadable_torchvision
from countgen.cli.check import Check
from countgen.cli.count import Count
from countgen.cli.dataset import Dataset
from countgen.cli.demo import Demo
from countgen.cli.evaluate import Evaluate
from countgen.cli.export import Export
from countgen.cli.generate import Generate
from countgen.cli.learn import Learn
from countgen.cli.list import List
from countgen.cli.report import Report
from countgen.cli.token import Token
from countgen.cli.trust import Trust
from countgen.cli.vary import Vary


class Command(Protocol):
    """A dataclass whose fields are the command's flags."""

    def run(self, messages: Console) -> int:
        """Do the work; what was asked for goes to stdout, all else to ``messages``. Returns the exit code."""


COMMANDS: dict[str, Callable[..., Command]] = {
    "generate": Generate,
    "count": Count,
    "evaluate": Evaluate,
    "list": List,
    "check": Check,
    "token": Token,
    "learn": Learn,
    "report": Report,
    "demo": Demo,
    "export": Export,
    "trust": Trust,
    "dataset": Dataset,
    "vary": Vary,
}


def run(arguments: Sequence[str] | None) -> int:
    """Parse the arguments and run their command; the exit code."""
    hide_unloadable_torchvision()
    command: Command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="countgen", args=arguments
    )
    messages = Console(stderr=True, highlight=False)
    try:
        return command.run(messages)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        code, sentence = explain(error)
        if not code:
            raise
        messages.print(f"countgen: {sentence}", markup=False, soft_wrap=True)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and sentence of an error that a user can cause; 0 for a fault of the program's own."""
    from countgen.errors import MemoryShortage, UsageError

    if isinstance(error, UsageError):
        return 2, str(error)
    # These modules load torch, which takes longer than a usage error may.
    from countgen.pocket.world import PocketError
    from critics.base import UnknownNounError
    from critics.loading.checkpoint import CheckpointError
    from pipelines.loading import LoadError

    if isinstance(error, UnknownNounError):
        return 2, str(error)
    if isinstance(error, (LoadError, CheckpointError, PocketError, MemoryShortage)):
        return 1, str(error)
    if isinstance(error, OSError):
        return 1, told(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return 1, "the memory does not suffice; take a smaller size, fewer at once, or --memory low"
    return 0, ""


def told(error: OSError) -> str:
    """What the operating system said, without its number and with the file's name."""
    if not error.strerror:
        return str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    # Written where a path holds what the terminal cannot show, too.
    reason = error.strerror[:1].lower() + error.strerror[1:]
    return f"{name}: {reason}" if name else reason
