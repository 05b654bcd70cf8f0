"""The methods that make a picture exact; each is a small frozen record of settings.

All of them share one loop (``countgen.engine.pool``) and one budget: draw, count, and then either draw again
(best of N), or improve the noise (noise optimisation), until critic and verifier agree.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from countgen.errors import UsageError
from countgen.guidance.objectives import OBJECTIVES


@dataclass(frozen=True)
class Method:
    """What the loop does with a picture that is not exact.

    Attributes:
        steps: most gradient steps on one noise before a new one is drawn; 0 never takes a gradient.
        explore: plain noises that are drawn before the nearest of them is improved; 0 improves each.
        candidates: most noises tried for one picture; 0 leaves that to the budget.
        objective: name in ``countgen.guidance.objectives.OBJECTIVES``.
        margin: distance from the critic's threshold that the margin objective asks for, in logits.
        step_size: greatest length of a step before momentum, as a share of the noise's norm. A step is
            Polyak's, loss over slope, where that is shorter.
        momentum: of the steps, per image.
    """

    name: str
    summary: str
    steps: int = 0
    explore: int = 0
    candidates: int = 0
    objective: str = "margin"
    margin: float = 2.0
    step_size: float = 0.05
    momentum: float = 0.7

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"there is no objective {self.objective!r}; there are {', '.join(OBJECTIVES)}"
            )
        if min(self.steps, self.explore, self.candidates) < 0:
            raise UsageError("steps, explore and candidates of a method must not be negative")

    @property
    def draws(self) -> int:
        """Plain noises before the nearest is improved: ``explore``, or all candidates if fewer."""
        return min(self.explore, self.candidates) if self.candidates else self.explore


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", "one plain picture, counted", candidates=1),
        Method("best-of-n", "draw again until critic and verifier agree, keep the nearest"),
        Method(
            "noise",
            "draw a few, then improve the nearest noise by the critic's gradient (two-sided margins)",
            steps=16,
            explore=12,
        ),
        Method(
            "noise-soft",
            "as noise, by the plain soft-indicator count (D2D's objective, reconstructed)",
            steps=16,
            explore=12,
            objective="soft",
        ),
        Method(
            "noise-scaled",
            "as noise, by the scaled soft indicator (D2D's objective, reconstructed)",
            steps=16,
            explore=12,
            objective="scaled",
        ),
    )
}


def find_method(name: str) -> Method:
    """A method by name.

    Raises:
        UsageError: unknown name, with the nearest ones.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(METHODS)}"
    raise UsageError(f"there is no method {name!r}; {hint}")
