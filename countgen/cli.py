"""The ``countgen`` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Generate:
    """Draw pictures of a prompt with the embedded pocket model and count what they hold.

    Pictures are drawn until critic and verifier, two different counters, both find exactly the number
    that the prompt asks for. Nothing is downloaded and no GPU is needed.

    Example: countgen generate "seven red apples on a table" --out pictures
    """

    prompt: Annotated[str, tyro.conf.Positional]
    """What to draw, for instance "seven red apples on a table"."""
    out: Path = Path("outputs")
    """Folder for the pictures; it is made if it does not exist."""
    seed: int = 0
    """The same seed and prompt give the same pictures."""
    num_images: int = 1
    """How many pictures to make."""
    draws: int = 16
    """Most pictures drawn for each one kept."""
    strict: bool = False
    """Exit with 3 when a picture is not verified exact."""
    json: bool = False
    """Print one JSON document instead of a table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 usage error, 3 not exact with --strict."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"generate": Generate}, prog="countgen", args=arguments
    )
    messages = Console(stderr=True, highlight=False)
    from countgen.errors import UsageError
    from countgen.pocket.world import PocketError
    from critics.base import UnknownNounError

    try:
        return _generate(options, messages)
    except (UsageError, UnknownNounError) as error:
        messages.print(f"countgen: {error}", markup=False)
        return 2
    except (PocketError, OSError) as error:
        messages.print(f"countgen: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        messages.print("countgen: interrupted; finished pictures are kept")
        return 1


def _generate(options: Generate, messages: Console) -> int:
    from countgen.drawing import OUTCOMES, Drawing, generate

    def note(text: str) -> None:
        messages.print(f"note: {text}", markup=False)

    with messages.status("loading pocket and drawing") as status:

        def progress(drawing: Drawing) -> None:
            found = ", ".join(f"{n} {noun}" for noun, n in drawing.counts["critic"].items())
            status.update(f"{drawing.draws} drawn, last kept: {found or 'a picture'}")

        report = generate(
            options.prompt,
            options.out,
            seed=options.seed,
            num_images=options.num_images,
            draws=options.draws,
            note=note,
            progress=progress,
        )
    if options.json:
        print(json.dumps(report))
    else:
        for row in report["images"]:
            counts = "; ".join(
                f"{role} counts " + ", ".join(f"{noun}: {n}" for noun, n in found.items())
                for role, found in row["counts"].items()
                if found
            )
            print(f"{row['path']}  {row['outcome']}{'  (' + counts + ')' if counts else ''}")
        for outcome in dict.fromkeys(row["outcome"] for row in report["images"]):
            messages.print(OUTCOMES[outcome], markup=False)
    exact = all(row["verified"] for row in report["images"])
    return 3 if options.strict and not exact else 0


if __name__ == "__main__":
    sys.exit(main())
