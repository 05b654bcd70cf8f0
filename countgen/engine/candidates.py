"""What of a counter's estimate jobs keep, and what policies are told of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from countgen.engine.actions import NounSeen, near_threshold
from countgen.engine.job import Candidates
from critics.base import CountEstimate

NEAR = 4
"""Uncounted candidates of a noun that policies are told of."""


def candidates_of(
    estimate: CountEstimate, kinds: Sequence[int]
) -> list[tuple[Candidates, ...] | None]:
    """Of every picture the distinct candidates of each of its nouns, on the CPU; None without boxes.

    Args:
        kinds: how many nouns each picture is counted for.
    """
    found = estimate.candidates
    if found is None:
        return [None] * len(kinds)
    margins, boxes = found.margins.detach().float().cpu(), found.boxes.float().cpu()
    kept, distinct = found.kept.cpu(), found.distinct.cpu()
    every: list[tuple[Candidates, ...] | None] = []
    for i, several in enumerate(kinds):
        nouns = []
        for k in range(several):
            # Candidates come strongest first: all that are distinct, up to the last that policies may name.
            real = distinct[i, k].nonzero()[:, 0]
            most = int(kept[i, k].sum()) + NEAR
            use = real[:most]
            nouns.append(
                Candidates(
                    margins[i, k, use], boxes[i, k, use], kept[i, k, use], distinct[i, k, use]
                )
            )
        every.append(tuple(nouns))
    return every


def nouns_seen(
    candidates: tuple[Candidates, ...] | None,
    counts: Sequence[int],
    wanted: Sequence[int],
    size: Sequence[int],
) -> tuple[NounSeen, ...]:
    """The same for policies, as plain values; ``size`` is the picture's height and width in pixels."""
    if candidates is None:
        return tuple(NounSeen(w, c) for w, c in zip(wanted, counts, strict=True))
    seen = []
    for found, count, want in zip(candidates, counts, wanted, strict=True):
        margins, kept = found.margins.tolist(), found.kept.tolist()
        near = [(i, m) for i, m in enumerate(margins) if not kept[i] and math.isfinite(m)]
        doubt = near_threshold(margins) if margins else None
        x0, y0, x1, y1 = found.boxes[found.kept].unbind(-1)
        down, across = (y0 + y1) / 2 / size[0], (x0 + x1) / 2 / size[1]
        seen.append(
            NounSeen(
                want,
                count,
                tuple(i for i, counted in enumerate(kept) if counted),
                tuple(near[:NEAR]),
                None if doubt is None else (doubt, margins[doubt]),
                tuple(m for m, counted in zip(margins, kept, strict=True) if counted),
                tuple(zip(down.tolist(), across.tolist(), strict=True)),
            )
        )
    return tuple(seen)
