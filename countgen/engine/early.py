"""Looks in the middle of sampling: what is far off in its predicted clean picture is not finished."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from countgen.engine.actions import Record
from pipelines.base import Plan


@dataclass(frozen=True)
class EarlyLook:
    """After a part of the steps fresh noises and edits are counted, and the hopeless ones are abandoned.

    Hopeless is what would not come nearer than the nearest finished picture of the job even if its count
    still changed by as much as early counts of the job's finished pictures have done, in the median. So
    where early counts say little, little is abandoned.

    Attributes:
        share: of the steps, after which it is looked.
        steps: plans with fewer evaluations of the denoiser are not looked into.
    """

    share: float = 0.5
    steps: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"the share of an early look lies between 0 and 1, not at {self.share}"
            )
        if self.steps < 2:
            raise ValueError("an early look needs plans of at least 2 steps")

    def after(self, plan: Plan) -> int:
        """How many evaluations of the denoiser come before it; 0 where none is taken."""
        if plan.evaluations < self.steps:
            return 0
        return min(max(round(self.share * plan.evaluations), 1), plan.evaluations - 1)


def tolerated(records: Sequence[Record]) -> float:
    """How far off a job's early counts may be for a picture to be finished."""
    finished = [record for record in records if not record.abandoned and record.finite]
    changes = [
        sum(abs(a - b) for a, b in zip(record.early, record.counts, strict=True))
        for record in finished
        if record.early is not None
    ]
    if not changes:
        return math.inf
    nearest = min(record.error for record in finished)
    return max(nearest - 1, 0) + statistics.median_low(changes)
