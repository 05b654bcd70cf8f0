"""What is kept of a finished picture: views of it, files to take along, and what the API says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from countgen.demo import views
from countgen.demo.files import Shelf
from countgen.demo.watch import Boxes, told_counts

if TYPE_CHECKING:
    from PIL import Image

    from countgen.demo.wishes import Wish
    from countgen.engine.job import Job, Observation
    from countgen.engine.run import Run
    from countgen.pipeline import CountGuidedPipeline

SIDE = 512
"""Least side at which results are shown."""


@dataclass(frozen=True)
class Kept:
    """A finished picture as the page holds it for its visitor: paths and texts, no pixels.

    Attributes:
        pairs: (plain, exact), bare and with everything numbered that was counted.
        picture, settings: files to download; the PNG carries its settings and its noise.
        beside: what the two pictures of a pair are.
        record: what the API answers.
    """

    pairs: Mapping[bool, tuple[str, str]]
    picture: str
    settings: str
    beside: str
    caption: str
    verdict: str
    record: Mapping[str, Any]


def keep(
    job: Job, run: Run, pipeline: CountGuidedPipeline, wish: Wish, shelf: Shelf
) -> Kept | None:
    """Write the files of one picture; None where there is none."""
    from countgen import provenance
    from countgen.cli.generate import sentence
    from countgen.engine.run import counts_of, to_pil
    from countgen.guidance.methods import find_method
    from countgen.seeds import image_seed

    best, plain = job.best, job.plain
    if best is None or plain is None:
        return None
    plan = pipeline.adapter.plan(wish.steps, None, wish.height, wish.width)
    made = provenance.provenance_of(
        job,
        pipeline,
        plan,
        find_method(wish.method),
        model=wish.model,
        run_seed=wish.seed,
        image=job.index,
        seed=image_seed(wish.seed, job.prompt.text, job.index, best.record.candidate),
    )
    said = sentence(job.outcome, wish.method)
    name = _file_name(job.prompt.text, wish.seed, job.index)
    pairs = {
        numbered: (
            shelf.keep("plain.webp", views.webp(_view(plain, numbered))),
            shelf.keep("exact.webp", views.webp(_view(best, numbered))),
        )
        for numbered in (False, True)
    }
    sure = run.trust(job)
    mark = "verified" if job.verified else job.outcome
    record = {
        "prompt": job.prompt.text,
        "targets": {t.noun: t.count for t in job.prompt.targets},
        "counts": counts_of(job),
        "verified": job.verified,
        "trust": None if sure is None else round(sure, 4),
        "outcome": job.outcome,
        "meaning": said,
        "model": wish.model,
        "method": wish.method,
        "critic": pipeline.critic.card.name,
        "verifier": pipeline.verifier.card.name if pipeline.verifier else None,
        "seed": wish.seed,
        "image": job.index,
        "cost": {"pre": round(job.spent, 3), "looks": len(job.records)},
        "boxes": dict(zip(job.request.nouns, _boxes(best), strict=False)),
        "notes": list(run.notes),
    }
    return Kept(
        pairs,
        shelf.keep(f"{name}.png", provenance.png(to_pil(best.image), made)),
        shelf.keep(f"{name}.json", json.dumps(dict(made.settings), indent=2).encode()),
        f"Plain (left) and {'exact' if job.verified else 'the nearest'} (right)",
        f"{told_counts(best.record.counts, job.prompt) or 'drawn'} ({mark})",
        views.verdict(job, said, run.cost.seconds, sure),
        record,
    )


def _boxes(seen: Observation) -> Boxes:
    return [[[round(v, 1) for v in box] for box in kind.tolist()] for kind in seen.boxes or ()]


def _view(seen: Observation, numbered: bool) -> Image.Image:
    from countgen.drawing import outlined
    from countgen.engine.run import to_pil

    image = to_pil(seen.image)
    return outlined(image, _boxes(seen) if numbered else (), max(SIDE, *image.size))


def _file_name(prompt: str, seed: int, index: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return f"{words or 'picture'}-{seed}-{index}"


def captions(pictures: Sequence[Kept]) -> list[tuple[str, str]]:
    """For a gallery: the numbered pictures with what was counted."""
    return [(one.pairs[True][1], one.caption) for one in pictures]
