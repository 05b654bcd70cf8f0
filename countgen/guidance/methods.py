"""The methods that make a picture exact: named choices of variable, objective, prior, optimizer and policy.

All of them share one loop (``countgen.engine``) and one budget, and stop at their first verified picture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from countgen.engine.actions import Policy
from countgen.engine.best_move import BestMove
from countgen.engine.early import EarlyLook
from countgen.engine.policy import (
    BestOfN,
    DrawThenEdit,
    DrawThenImprove,
    HillClimbing,
    PathIntegral,
    TrustRegion,
)
from countgen.engine.rates import Rates
from countgen.errors import UsageError
from countgen.guidance.base import FirstNoise, Objective, Optimizer, Prior, Variable, Words
from countgen.guidance.edits import Editor, Edits
from countgen.guidance.names import LEARNT_SUMMARIES, check_method_name
from countgen.guidance.objectives import ScaledIndicator, SoftCount, TwoSidedHinge
from countgen.guidance.optimizers import SGD, Adam, Polyak
from countgen.guidance.priors import KL, ChiNorm, Free, Renormalise
from countgen.guidance.steps import CountingGuidance, PromptSteering, StepGuide
from countgen.guidance.variables import CountToken, DirectNoise, LatentModifier, MeanLogVariance

Standing = Literal["published", "reconstruction", "ours"]


@dataclass(frozen=True)
class Method:
    """How a picture that is not exact is changed.

    Attributes:
        policy: what is tried next.
        objective: what is minimised, and what searches order pictures by; None where nothing needs it.
        variable, prior, optimizer: of gradient steps.
        edits: how changes of the noise are made.
        guide: of the single steps of every fresh draw.
        first: what makes fresh noises better ones; None draws them as they come.
        words: what is told in place of the prompts' texts; None tells these.
        early: which fresh noises and edits are not finished; None finishes all.
        grad_steps: how many of the last steps the gradient goes through; None for all.
        semantic: weight of the term 1 - score, with a score of picture and text in [0, 1].
        standing: "published": the formula of the source; "reconstruction": the source does not tell all of
            it, ``chosen`` says what was taken; "ours".
    """

    name: str
    summary: str
    policy: Policy
    objective: Objective | None = None
    variable: Variable = field(default_factory=DirectNoise)
    prior: Prior = field(default_factory=Renormalise)
    optimizer: Optimizer = field(default_factory=Polyak)
    edits: Editor = field(default_factory=Edits)
    guide: StepGuide | None = None
    first: FirstNoise | None = None
    words: Words | None = None
    early: EarlyLook | None = None
    grad_steps: int | None = None
    semantic: float = 0.0
    source: str = ""
    standing: Standing = "ours"
    chosen: str = ""

    def __post_init__(self) -> None:
        if self.grad_steps is not None and self.grad_steps < 1:
            raise UsageError(
                f"the gradient of {self.name} goes through at least one step, not {self.grad_steps}"
            )
        if not 0 <= self.semantic < math.inf:
            raise UsageError(
                f"the semantic weight of {self.name} must be finite and at least 0, not {self.semantic}"
            )
        if self.early is not None and self.guide is not None:
            raise UsageError(
                f"{self.name} guides single steps, and is not looked at early; leave one of them out"
            )
        if "improve" in self.policy.moves:
            if self.objective is None:
                raise UsageError(f"{self.name} takes gradient steps and needs an objective")
            if self.prior.projects and not self.variable.latents:
                raise UsageError(
                    f"the prior {type(self.prior).__name__} of {self.name} projects noise, but "
                    f"{type(self.variable).__name__} optimises something else; take a penalty such as ChiNorm"
                )
        if self.words is not None and isinstance(self.variable, CountToken):
            raise UsageError(
                f"{self.name} optimises a count token, and cannot begin with those of a network; take a "
                "method that changes the noise, such as engine"
            )
        if "edit" in self.policy.moves and not isinstance(self.variable, DirectNoise):
            raise UsageError(
                f"{self.name} edits the noise, which needs the variable DirectNoise, not "
                f"{type(self.variable).__name__}"
            )

    @property
    def gradient(self) -> bool:
        """Whether it takes gradients."""
        return "improve" in self.policy.moves or (self.guide is not None and self.guide.gradient)

    @property
    def looks_inside(self) -> bool:
        """Whether it needs an adapter: for gradients, to guide single steps or look at them, or to change the
        text."""
        parts = (self.guide, self.first, self.words, self.early)
        changed = any(part is not None for part in parts)
        return self.gradient or changed or not isinstance(self.variable, DirectNoise)

    @property
    def places(self) -> bool:
        """Whether it edits the noise under the critic's boxes."""
        return "edit" in self.policy.moves and isinstance(self.policy, DrawThenEdit | BestMove)

    @property
    def needs_candidates(self) -> bool:
        """Whether only a detector can be its critic."""
        if isinstance(self.policy, BestMove):  # which does without, see ``fitted``
            return False
        needs = self.objective.needs if self.objective is not None else "soft"
        return self.places or needs == "candidates"

    def fitted(
        self,
        *,
        boxes: bool = True,
        gradient: bool = True,
        rates: Rates | None = None,
        width: int | None = None,
    ) -> Method:
        """The same, with those moves alone that critic and generator can make; of ``engine`` only.

        Args:
            boxes: whether the critic says where objects are.
            gradient: whether generator and critic are differentiable.
            rates: measured for the generator; else uniform ones are the prior.
            width: what "auto" comes to; None leaves it open.
        """
        policy = self.policy
        if not isinstance(policy, BestMove):
            return self
        policy = replace(
            policy,
            rates=policy.rates or rates,
            steps=policy.steps if gradient else 0,
            edits=policy.edits and boxes,
            width=width if width and policy.width == "auto" else policy.width,
        )
        objective = self.objective
        if not boxes and objective is not None and objective.needs == "candidates":
            objective = SoftCount()
        steps = self.grad_steps if gradient else None
        early = self.early if gradient else None
        return replace(self, policy=policy, objective=objective, grad_steps=steps, early=early)


_HINGE = TwoSidedHinge()
_ENGINE = Method(
    "engine",
    "of draws, edits, grafts and gradients, whatever promises most for its price",
    BestMove(),
    _HINGE,
    edits=Edits("soft"),
    grad_steps=1,
)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", "one plain picture, counted", BestOfN(candidates=1), prior=Free()),
        Method(
            "best-of-n", "draw again until critic and verifier agree, keep the nearest", BestOfN()
        ),
        Method(
            "noise",
            "draw a few, then improve the nearest noise by the critic's gradient (two-sided hinge)",
            DrawThenImprove(),
            _HINGE,
        ),
        Method(
            "noise-soft",
            "as noise, by the plain soft count (D2D's plain indicator with detectors)",
            DrawThenImprove(),
            SoftCount(),
        ),
        Method(
            "noise-scaled",
            "as noise, by the scaled soft indicator (D2D's objective, reconstructed)",
            DrawThenImprove(),
            ScaledIndicator(),
        ),
        Method(
            "edit",
            "draw a few, then redraw the noise under surplus objects and copy it where objects lack",
            DrawThenEdit(),
            _HINGE,
            edits=Edits("soft"),
        ),
        _ENGINE,
        replace(
            _ENGINE,
            name="engine-early",
            summary="as engine, and what looks too far off by the middle of 20 steps or more is not finished",
            early=EarlyLook(),
        ),
        Method(
            "reno",
            "gradient ascent on the noise under a chi prior",
            DrawThenImprove(draws=0, steps=50),
            SoftCount(),
            prior=ChiNorm(weight=0.01),
            optimizer=SGD(lr=5.0, momentum=0.9, nesterov=True, clip=0.1),
            source="Eyring et al., ReNO, arXiv 2406.04312",
            standing="published",
            chosen="the critic's count is the reward in place of the four preference models",
        ),
        Method(
            "d2d",
            "a small network changes the noise, by the scaled soft indicator of the detector's logits",
            DrawThenImprove(draws=0, steps=30),
            ScaledIndicator(),
            variable=LatentModifier(),
            prior=ChiNorm(weight=0.01, power=10.0),
            optimizer=Adam(lr=0.01),
            source="Yoo et al., D2D, arXiv 2510.19278",
            standing="reconstruction",
            chosen="shape of the network, its mixing, loss form, deficit half, steps and optimiser",
        ),
        Method(
            "count-token",
            "the embedding of a new word before the number is optimised",
            DrawThenImprove(draws=0, steps=50, patience=15),
            SoftCount(),
            variable=CountToken(),
            prior=Free(),
            optimizer=Adam(lr=0.01, weight_decay=0.01),
            source="Zafar et al., arXiv 2408.11721",
            standing="reconstruction",
            chosen="every text encoder learns the token, and weight decay falls on the token alone",
        ),
        Method(
            "initno",
            "mean and variance of the noise are optimised under their divergence from a normal",
            DrawThenImprove(draws=0, steps=50),
            SoftCount(),
            variable=MeanLogVariance(),
            prior=KL(weight=1.0),
            optimizer=Adam(lr=0.01, eps=1e-3),
            source="Guo et al., InitNO, arXiv 2404.04650",
            standing="reconstruction",
            chosen="the count in place of the attention losses, the divergence as a penalty in one descent",
        ),
        Method(
            "counting-guidance",
            "every step is corrected by the gradient of the count in its predicted clean picture",
            BestOfN(),
            guide=CountingGuidance(),
            source="Kang et al., Counting Guidance, arXiv 2306.17567",
            standing="reconstruction",
            chosen="the critic in place of its class-agnostic counter, a gradient of the prediction's norm, "
            "no attention loss",
        ),
        Method(
            "prompt-steering",
            "the first steps are moved away from the prompt without its number",
            BestOfN(),
            guide=PromptSteering(),
            source="Sepehri et al., ATHENA (static), arXiv 2603.19676",
            standing="published",
            chosen="the steered part of the steps as a fraction of them",
        ),
        Method(
            "prompt-steering-feedback",
            "the first steps are moved away from the number that an unsteered beginning shows",
            BestOfN(),
            guide=PromptSteering(control="feedback"),
            source="Sepehri et al., ATHENA (feedback), arXiv 2603.19676",
            standing="published",
            chosen="the steered part of the steps as a fraction of them, without the adaptive second look",
        ),
        Method(
            "hill-climbing",
            "small random steps of the whole noise around the best so far",
            HillClimbing(),
            _HINGE,
            source="baseline of arXiv 2603.14504",
            standing="published",
            chosen="the critic's distance and loss are the reward",
        ),
        Method(
            "trs",
            "trust-region search of the noise without a gradient",
            TrustRegion(),
            _HINGE,
            source="Schweiger et al., TRS, arXiv 2603.14504",
            standing="reconstruction",
            chosen="Gaussian proposals that are reflected at the cube, a share of 0.3 of the entries",
        ),
        Method(
            "zeno",
            "reward-weighted mean of Ornstein-Uhlenbeck perturbations of the noise",
            PathIntegral(),
            _HINGE,
            source="ZeNO, arXiv 2605.11347",
            standing="reconstruction",
            chosen="batch, step and temperature; only the abstract is public",
        ),
    )
}


def find_method(name: str) -> Method:
    """A method by name; or with learnt first noises or tokens, screening=FILE, and the same of another
    method, engine+screening=FILE.

    Raises:
        UsageError: unknown name, with the nearest ones; a file that is none of that kind.
    """
    check_method_name(name)
    if name in METHODS:
        return METHODS[name]
    of, path = name.split("=", 1)
    base, _, kind = of.rpartition("+")
    learnt = _load_learnt(kind, path, os.stat(path).st_mtime_ns)
    if base:
        return replace(METHODS[base], name=of, **learnt)
    return Method(of, LEARNT_SUMMARIES[kind], BestOfN(), **learnt)


@lru_cache(maxsize=4)
def _load_learnt(kind: str, path: str, changed: int) -> dict[str, Any]:
    """What ``countgen learn`` wrote, by the method's field that it is for; read once as long as it does not
    change."""
    if kind == "screening":
        from countgen.learning.screening import Screening

        return {"first": Screening.load(Path(path))}
    if kind == "token-network":
        from countgen.learning.token_network import TokenWords

        return {"words": TokenWords.load(Path(path))}
    from countgen.learning.noise import Amortised

    return {"first": Amortised.load(Path(path))}


def without_gradient(methods: Iterable[Method] = METHODS.values()) -> list[str]:
    """Names of the methods that serve every pipeline: they look at pictures, and never into a step."""
    return [method.name for method in methods if not method.looks_inside]
