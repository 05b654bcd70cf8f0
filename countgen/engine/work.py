"""What a job asks to be looked at, made ready: its noise drawn or edited, or its climb to go on with."""

from __future__ import annotations

from dataclasses import dataclass

from countgen.engine.actions import Action, Draw, Edit
from countgen.engine.early import tolerated
from countgen.engine.job import Climb, Job
from countgen.guidance.methods import Method
from countgen.seeds import derived_seed
from pipelines.base import Noise


@dataclass(frozen=True)
class Work:
    """One picture to look at.

    Attributes:
        number: that the record will have.
        noise: to be drawn, on the CPU; of a climb the one that it began with.
        climb: to go on with; None where the look is plain, or the first of a climb.
        gradient: whether the way back is asked for.
        limit: how far off its early count may be for it to be finished; None where it is not looked at early.
    """

    job: Job
    action: Action
    number: int
    candidate: int
    noise: Noise
    climb: Climb | None = None
    gradient: bool = False
    limit: float | None = None

    @property
    def step(self) -> int:
        return self.climb.step if self.climb else 0

    @property
    def base(self) -> int | None:
        return None if isinstance(self.action, Draw) else self.action.base


def prepare(job: Job, action: Action, number: int, candidate: int, method: Method) -> Work:
    """What an action of a job looks at.

    Args:
        candidate: the number that a fresh noise gets.

    Raises:
        ValueError: the action's base is no record of the job, or a climb that cannot go on.
    """
    limit = None if method.early is None else tolerated(job.records)
    if isinstance(action, Draw):
        noise = job.request.draw(candidate)
        if action.gradient:
            return Work(job, action, number, candidate, noise, gradient=True)
        return Work(job, action, number, candidate, noise, limit=limit)
    base = job.observations.get(action.base)
    if base is None:
        raise ValueError(
            f"the policy of {method.name} asks for record {action.base}, and there are {len(job.records)}"
        )
    candidate = base.record.candidate
    if isinstance(action, Edit):
        noise = base.noise
        for place, change in enumerate(action.changes):
            seed = derived_seed(job.request.seed, "edit", number, place)
            noise = method.edits(change, noise, base, job.observations, seed)
        return Work(job, action, number, candidate, noise, limit=limit)
    if action.last and base.ahead is None:
        raise ValueError(
            f"no climb goes on from record {action.base}, which {method.name} asks for"
        )
    noise = base.ahead.start if base.ahead else base.noise
    return Work(job, action, number, candidate, noise, base.ahead, gradient=not action.last)
