"""A run as people watch it: the latest look at every picture, what was just done, and what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from countgen.prompts import pluralise

if TYPE_CHECKING:
    from PIL import Image

    from countgen.engine.actions import Record
    from countgen.engine.job import Job
    from countgen.engine.pool import StepState
    from countgen.prompts import CountPrompt

FILM = 24
"""Looks that the filmstrip of a picture shows, the last ones."""
Boxes = Sequence[Sequence[Sequence[float]]]
"""Per noun, what the critic counted: x0, y0, x1, y1 in pixels."""


@dataclass
class Shot:
    """One look at one picture."""

    image: Image.Image
    boxes: Boxes
    counts: tuple[int, ...]
    move: str
    pre: float


@dataclass
class Watched:
    """What there is to show of one wanted picture."""

    job: Job
    shots: list[Shot] = field(default_factory=list)
    looks: int = 0

    @property
    def latest(self) -> Shot | None:
        return self.shots[-1] if self.shots else None


class Watch:
    """All pictures of a run, by what its states have shown so far."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.pictures = {job.index: Watched(job) for job in jobs}

    def see(self, state: StepState) -> None:
        """Add the looks of one batch."""
        from countgen.engine.run import to_pil

        for row, (job, record) in enumerate(zip(state.jobs, state.records, strict=True)):
            watched = self.pictures[job.index]
            watched.looks += 1
            shot = Shot(
                to_pil(state.images[row]),
                _boxes(job, record),
                record.counts,
                told_move(record, job.prompt),
                record.pre,
            )
            watched.shots = [*watched.shots, shot][-FILM:]


def _boxes(job: Job, record: Record) -> Boxes:
    """What the critic counted in this look; nothing where it is not kept or has no boxes."""
    seen = job.observations.get(record.number)
    if seen is None and job.best is not None and job.best.record.number == record.number:
        seen = job.best
    return [kind.tolist() for kind in seen.boxes or ()] if seen is not None else []


def told_counts(counts: Sequence[int], prompt: CountPrompt) -> str:
    """What was counted, in words: "7 red apples, 2 cats"."""
    return ", ".join(
        f"{n} {pluralise(target.noun, n)}"
        for n, target in zip(counts, prompt.targets, strict=False)
    )


def told_wanted(prompt: CountPrompt) -> str:
    """What is wanted, in words."""
    return told_counts([target.count for target in prompt.targets], prompt)


def told_move(record: Record, prompt: CountPrompt) -> str:
    """What was done for a look at a picture, in a few words."""
    if record.move == "draw":
        return "drew the plain picture" if record.number == 0 else "drew a fresh picture"
    if record.move == "improve":
        return f"took gradient step {max(record.step, 1)}"
    nouns = [target.noun for target in prompt.targets]
    told = dict.fromkeys(told_change(change.kind, nouns, change.noun) for change in record.changes)
    return " and ".join(told) or "changed the noise"


def told_change(kind: str, nouns: Sequence[str], noun: int) -> str:
    """One change of an edit, in a few words."""
    name = nouns[noun] if noun < len(nouns) else "object"
    return {
        "redraw": f"redrew the noise under one {name}",
        "clear": f"put the noise of a free spot under one {name}",
        "copy": f"copied the noise of one {name} to a free spot",
        "fresh": "drew fresh noise on a free spot",
        "splice": "joined parts of two noises",
        "graft": f"took over the noise of one {name} of another draw",
        "perturb": "shook the whole noise a little",
        "resample": "drew a part of the noise anew",
        "mix": "mixed several noises",
    }.get(kind, "changed the noise")
