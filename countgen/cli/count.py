"""``countgen count``: what counters see in any picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from countgen.errors import UsageError
from countgen.prompts import pluralise, singularise

if TYPE_CHECKING:
    from countgen.evaluation.counting import Answer
    from critics.base import Critic

OPEN_CRITIC = "owlv2"
"""Counts in pictures that do not tell which model made them: it sees any noun."""
SIDES = (384, 1024)
"""Least and most pixels of a side of a picture with boxes."""


@dataclass(frozen=True)
class Count:
    """Count things in pictures, with one counter or several.

    PNG, JPEG and WebP are read, and turned as their EXIF says. A picture that cannot be read is named, and
    the others are counted.

    Example: countgen count outputs/000.png --noun "red apple" --boxes boxes
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The pictures."""
    noun: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to count, such as --noun "red apple"; may be repeated."""
    critic: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Counter (see: countgen list critics), or NAME=SOURCE with a hub id or folder of weights; may be
    repeated. By default the critic and the verifier of the model that made the first picture, where that was
    countgen, else owlv2."""
    boxes: Path | None = None
    """Folder for the pictures with numbered boxes around what was counted; what is there stays."""
    device: str | None = None
    """cuda, mps or cpu; by default the best there is."""
    batch_size: int = 16
    """Most pictures looked at together."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self, messages: Console) -> int:
        """Count, and print the table; 1 where a picture could not be counted."""

        def note(text: str) -> None:
            messages.print(f"note: {text}", markup=False, soft_wrap=True)

        with messages.status("loading the counters") as status:

            def progress(done: int, total: int) -> None:
                status.update(f"{done} of {total} pictures")

            document = count(self, note, progress)
        if self.json:
            print(json.dumps(document))
        else:
            print("\n".join(table(document)))
        failed = [row for row in document["images"] if row["error"]]
        for row in failed:
            messages.print(f"countgen: {row['error']}", markup=False, soft_wrap=True)
        return 1 if failed else 0


def count(
    options: Count,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Count in pictures; the JSON document of the command.

    Raises:
        UsageError: no picture or noun, an unknown counter, or a noun that none of them can look for.
        critics.loading.checkpoint.CheckpointError: weights that cannot be loaded.
        OSError: the folder for boxes cannot be written to.
    """
    from countgen import presets

    nouns = _nouns(options.noun)
    if not options.images:
        raise UsageError("name at least one picture")
    if options.batch_size < 1:
        raise UsageError(f"the batch size must be at least 1, not {options.batch_size}")
    names = list(options.critic) or _default_critics(options.images[0], nouns)
    for name in names:
        presets.check_counter_name(name)
        if names.count(name) > 1:
            raise UsageError(f"the critic {name} is named twice")
    from countgen.files import PictureFolder, shown

    folder = PictureFolder(options.boxes) if options.boxes else None
    if folder is not None:
        folder.check()
    device = presets.check_device(options.device or _device(names))
    critics = {name: presets.load_critic(name) for name in names}

    from countgen.evaluation.counting import Counters, Question

    counters = Counters(critics, device)
    _check_seen(counters.sees, names, nouns, note)
    rows = []
    questions = [Question(path, nouns, key) for key, path in enumerate(options.images)]
    for answer in counters.count(questions, options.batch_size):
        row: dict[str, Any] = {
            "path": shown(answer.question.path),
            "size": list(answer.size),
            "counts": _counts(answer, nouns),
            "confidence": {
                name: {noun: round(seen.confidence, 4) for noun, seen in found.items()}
                for name, found in answer.seen.items()
            },
            "boxes": None,
            "error": answer.error,
        }
        if folder is not None and not answer.error:
            row["boxes"] = shown(folder.keep(answer.question.key, _drawn(answer, critics)))
        rows.append(row)
        progress(len(rows), len(questions))
    return {"nouns": list(nouns), "critics": names, "images": rows}


def table(document: Mapping[str, Any]) -> list[str]:
    """A line for each picture and noun, a column for each counter; "-" where one cannot look for the noun."""
    lines = [["picture", "noun", *document["critics"]]]
    for row in document["images"]:
        for noun in document["nouns"]:
            found = [row["counts"].get(name, {}).get(noun) for name in document["critics"]]
            told = ["error" if row["error"] else "-" if n is None else str(n) for n in found]
            lines.append([row["path"], noun, *told])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
            + [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        )
        for line in lines
    ]


def _nouns(written: Sequence[str]) -> tuple[str, ...]:
    if not written:
        raise UsageError('say what is to be counted, such as --noun "red apple"')
    nouns = tuple(singularise(noun) for noun in written)
    for noun in nouns:
        if not noun.strip():
            raise UsageError("a noun is empty; name what is to be counted")
        if nouns.count(noun) > 1:
            raise UsageError(f"--noun names {noun!r} twice")
    return nouns


def _default_critics(picture: Path, nouns: Sequence[str]) -> list[str]:
    """Those of the model that made a picture, as it tells itself; a word of its own is not taken further."""
    from countgen.evaluation.pictures import PictureError, picture_settings
    from countgen.presets import find_preset

    try:
        preset = find_preset(str(picture_settings(picture).get("model", "")))
    except (PictureError, UsageError):
        return [OPEN_CRITIC]
    roles = preset.roles(nouns)
    return [roles["critic"], roles["verifier"]]


def _device(names: Sequence[str]) -> str:
    """The CPU for the embedded counters, which are small; for others the best there is."""
    from countgen.presets import EMBEDDED, best_device

    own = {name for preset in EMBEDDED.values() for name in preset.counters}
    return "cpu" if set(names) <= own else best_device()


def _check_seen(
    sees: Callable[[str, str], bool],
    names: Sequence[str],
    nouns: Sequence[str],
    note: Callable[[str], None],
) -> None:
    """Refuse a noun that no counter can look for, and tell of one that some cannot."""
    for noun in nouns:
        blind = [name for name in names if not sees(name, noun)]
        if len(blind) == len(names):
            raise UsageError(
                f"{' and '.join(blind)} cannot look for {noun!r}; take a critic with an open vocabulary, "
                f"such as --critic {OPEN_CRITIC}"
            )
        if blind:
            note(f"{' and '.join(blind)} cannot look for {noun!r}")


def _counts(answer: Answer, nouns: Sequence[str]) -> dict[str, dict[str, int]]:
    return {
        name: {noun: found[noun].count for noun in nouns if noun in found}
        for name, found in answer.seen.items()
    }


def _drawn(answer: Answer, critics: Mapping[str, Critic]) -> bytes:
    """A PNG of what each counter has counted, side by side."""
    from io import BytesIO

    from countgen.drawing import Panel, side_by_side
    from countgen.evaluation.pictures import read_picture

    image = read_picture(answer.question.path)
    panels = []
    for name, found in answer.seen.items():
        told = ", ".join(
            f"{seen.count} {pluralise(noun, seen.count)}" for noun, seen in found.items()
        )
        boxless = "" if critics[name].gives == "candidates" else " (no boxes)"
        boxes = [seen.boxes or () for seen in found.values()]
        panels.append(Panel(f"{name}: {told}{boxless}", image, boxes))
    low, high = SIDES
    page = side_by_side(answer.question.path.name, panels, min(max(*image.size, low), high))
    file = BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
