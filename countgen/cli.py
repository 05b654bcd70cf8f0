"""The ``countgen`` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

if TYPE_CHECKING:
    from countgen.engine import StepState


@dataclass(frozen=True)
class Generate:
    """Draw pictures of a prompt that hold exactly the number of objects it asks for.

    A critic, a differentiable counter, steers the noise until it counts what the prompt asks for, and a
    second counter of another family checks the result: then the picture is verified. Beside every picture
    lies a comparison of the plain and the guided one, counted objects outlined and numbered. The embedded
    model needs no download and no GPU.

    Example: countgen generate "seven red apples on a table" --out pictures
    """

    prompt: Annotated[str, tyro.conf.Positional]
    """What to draw, for instance "seven red apples on a table"."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to count, in place of what the prompt says, such as --target "red apple=7"; may be repeated."""
    out: Path = Path("outputs")
    """Folder for the pictures; it is made if it does not exist."""
    model: str = "pocket"
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    critic: str | None = None
    """Counter that steers (see: countgen list critics), or NAME=SOURCE with a hub id or folder of weights."""
    verifier: str | None = None
    """Counter of another family that checks the result, named as the critic is."""
    device: str | None = None
    """cuda, mps or cpu; by default the best there is, and the CPU for pocket."""
    memory: Literal["auto", "fast", "balanced", "low"] = "auto"
    """How sparing to be with the device's memory; slower the lower. Not for pocket."""
    tiny_decoder: str | None = None
    """Hub id or folder of an AutoencoderTiny for the gradient alone, such as madebyollin/taesdxl."""
    method: str = "noise"
    """How a picture is made exact (see: countgen list methods)."""
    seed: int = 0
    """The same seed and prompt give the same pictures."""
    num_images: int = 1
    """How many pictures to make."""
    budget: float = 64.0
    """Most that one picture may cost, in plain renders (a guided step costs about two)."""
    strict: bool = False
    """Exit with 3 when a picture is not verified exact."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class List:
    """List what there is: critics, pipelines, suites or methods, with their cards.

    Example: countgen list critics
    """

    kind: Annotated[Literal["critics", "pipelines", "suites", "methods"], tyro.conf.Positional]
    """What to list."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class Check:
    """Load a generator and its counters, run one guided step, and say what fits and what is missing.

    Example: countgen check --model sdxl-turbo
    """

    model: str = "pocket"
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    critic: str | None = None
    """Counter that steers, as for generate."""
    verifier: str | None = None
    """Counter that checks, as for generate."""
    device: str | None = None
    """cuda, mps or cpu; by default the best there is."""
    memory: Literal["auto", "fast", "balanced", "low"] = "auto"
    """Which memory plan to try; auto goes on to a more sparing one when memory runs out."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the guided step counts, such as --target "cat=3"; may be repeated."""
    json: bool = False
    """Print one JSON document instead of text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 usage error, 3 not exact with --strict."""
    options: Generate | List | Check = tyro.extras.subcommand_cli_from_dict(
        {"generate": Generate, "list": List, "check": Check}, prog="countgen", args=arguments
    )
    messages = Console(stderr=True, highlight=False)
    from countgen.errors import MemoryShortage, UsageError

    try:
        if isinstance(options, Generate):
            return _generate(options, messages)
        return _check(options, messages) if isinstance(options, Check) else _list(options)
    except UsageError as error:
        messages.print(f"countgen: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        messages.print("countgen: interrupted; finished pictures are kept")
        return 1
    except Exception as error:
        # Imported only now: these modules load torch, which takes longer than a usage error may.
        from countgen.pocket.world import PocketError
        from critics.base import UnknownNounError
        from critics.checkpoint import CheckpointError
        from pipelines.hub import LoadError

        failures = (LoadError, CheckpointError, PocketError, MemoryShortage, OSError)
        if not isinstance(error, (*failures, UnknownNounError)):
            raise
        messages.print(f"countgen: {error}", markup=False)
        return 2 if isinstance(error, UnknownNounError) else 1


def _generate(options: Generate, messages: Console) -> int:
    from countgen.generate import generate, read_targets

    targets = read_targets(options.target)

    def note(text: str) -> None:
        messages.print(f"note: {text}", markup=False)

    done = 0
    with messages.status("loading the model and its counters") as status:

        def progress(state: StepState) -> None:
            nonlocal done
            done += len(state.finished)
            status.update(f"{done} of {options.num_images} finished; {_live(state)}")

        report = generate(
            options.prompt,
            options.out,
            model=options.model,
            critic=options.critic,
            verifier=options.verifier,
            device=options.device,
            memory=options.memory,
            tiny_decoder=options.tiny_decoder,
            seed=options.seed,
            num_images=options.num_images,
            budget=options.budget,
            method=options.method,
            targets=targets,
            note=note,
            progress=progress,
        )
    if options.json:
        print(json.dumps(report.document))
    else:
        for row in report.document["images"]:
            counts = "; ".join(
                f"{role} counts " + ", ".join(f"{noun}: {n}" for noun, n in found.items())
                for role, found in row["counts"].items()
                if found
            )
            print(f"{row['path']}  {row['outcome']}{'  (' + counts + ')' if counts else ''}")
        for sentence in report.sentences:
            messages.print(sentence, markup=False)
    exact = all(row["verified"] for row in report.document["images"])
    return 3 if options.strict and not exact else 0


def _live(state: StepState) -> str:
    """Where the first unfinished picture stands: counts found and asked for, and what it has cost."""
    from countgen.prompts import pluralise

    picture = next((p for p in state.pictures if not p.outcome), state.pictures[0])
    row = state.hard[state.pictures.index(picture)].tolist()
    found = ", ".join(
        f"{n} of {target.count} {pluralise(target.noun, target.count)}"
        for n, target in zip(row, picture.prompt.targets, strict=False)
    )
    return f"picture {picture.index}: {found or 'drawn'}; {picture.spent:.0f} of {picture.budget:.0f} renders"


def _check(options: Check, messages: Console) -> int:
    from countgen.check import check
    from countgen.generate import read_targets

    targets = read_targets(options.target)
    with messages.status("checking") as status:
        found = check(
            options.model,
            critic=options.critic,
            verifier=options.verifier,
            device=options.device,
            memory=options.memory,
            targets=targets,
            progress=status.update,
        )
    if options.json:
        print(json.dumps(found.document))
    else:
        print("\n".join(found.lines()))
    return 0 if found.document["works"] else 1


def _list(options: List) -> int:
    from countgen.listing import items

    cards = items(options.kind)
    if options.json:
        print(json.dumps({"items": cards}))
        return 0
    for card in cards:
        print(f"{card['name']}: {card['summary']}")
        for key, value in card.items():
            if key not in ("name", "summary") and value not in (None, "", [], ()):
                print(f"    {key.replace('_', ' ')}: {_plain(value)}")
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
