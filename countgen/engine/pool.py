"""The loop that all methods share: a pool of pictures, stepped in full batches until each is exact.

Every picture has its own noise, optimiser state, budget and history, and its decisions read nothing else, so
that results depend neither on the batch size nor on the company. A picture that is finished leaves its slot
to the next one.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from countgen.engine.cost import Cost, Prices
from countgen.errors import MemoryShortage
from countgen.guidance.methods import Method
from countgen.guidance.objectives import OBJECTIVES, two_sided_margin
from countgen.guidance.priors import norms, renormalise
from countgen.prompts import CountPrompt
from critics.base import CountEstimate, Critic, Query
from pipelines.base import Conditioning, Noise, PipelineAdapter, Plan

log = logging.getLogger("countgen")
EXACT = "exact"
BUDGET_SPENT = "budget spent"
NON_FINITE = "non-finite gradient"
CLOSE_CALL = "close call"
CANCELLED = "cancelled"
NO_COUNT = "no count in the prompt"
OUTCOMES = {
    EXACT: "Critic and verifier both count exactly what the prompt asks for, and neither narrowly.",
    CLOSE_CALL: "Critic and verifier count what the prompt asks for, but one of them narrowly, so the "
    "picture is not verified: look at it, or raise the budget.",
    BUDGET_SPENT: "No picture was exact within the budget; the nearest one is kept. Raise the budget, or "
    "ask for fewer objects.",
    NON_FINITE: "The gradient was not finite for every noise that was tried; the nearest picture is kept. "
    "Use float32, or another seed.",
    CANCELLED: "Stopped before the picture was exact; the nearest one so far is kept.",
    NO_COUNT: "The prompt names no count, so the first picture is kept as it came.",
}


@dataclass(frozen=True)
class Look:
    """A picture and what was counted in it.

    Attributes:
        image: (3, h, w) in [0, 1], on the CPU.
        noise: of this one picture, on the CPU; with prompt and plan it makes the picture again.
        critic, verifier: counts of each noun; the verifier's are None until it was asked.
        confidence, verifier_confidence: how far the counts of each are from other ones, the nearest of them
            (``CountEstimate.confidence``); the verifier's is 0 until it was asked.
        boxes: per noun, (n, 4) boxes that the critic counted, x0 y0 x1 y1 in pixels; None without boxes.
        candidate, step: which noise it was, and after how many gradient steps.
    """

    image: Float[Tensor, "3 h w"]
    noise: Noise
    critic: tuple[int, ...]
    verifier: tuple[int, ...] | None
    confidence: float
    verifier_confidence: float
    boxes: tuple[Float[Tensor, "_ 4"], ...] | None
    candidate: int
    step: int


@dataclass
class Picture:
    """One wanted picture, from its first draw to its outcome.

    Attributes:
        row: of the pool's conditioning.
        draw: candidate number -> noise of one picture.
        budget: PRE that may be spent on it; the first draw is always allowed.
        plain: the first draw, untouched by guidance.
        best: the nearest picture so far.
        history: a record for every time it was drawn.
        explored, start: plain draws since the last climb; loss, candidate and noise of the nearest.
    """

    index: int
    prompt: CountPrompt
    row: int
    queries: dict[str, Query]
    draw: Callable[[int], Noise]
    budget: float
    spent: float = 0.0
    plain: Look | None = None
    best: Look | None = None
    outcome: str = ""
    verified: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    drawn: int = 0
    candidate: int = 0
    step: int = 0
    noise: Noise | None = None
    velocity: Tensor | None = None
    explored: int = 0
    start: tuple[float, int, Noise] | None = None
    climbs: int = 0
    broken: int = 0

    @property
    def wanted(self) -> tuple[int, ...]:
        return tuple(target.count for target in self.prompt.targets)

    def distance(self, look: Look) -> tuple[int, int]:
        """How far a look is from what is wanted: by the critic, then by the verifier."""
        far = sum(abs(a - b) for a, b in zip(look.critic, self.wanted, strict=True))
        if look.verifier is None:
            return far, 10**6
        return far, sum(abs(a - b) for a, b in zip(look.verifier, self.wanted, strict=True))

    def rank(self, look: Look) -> tuple[int, bool, float]:
        """Order of looks, nearest first: by the critic's distance, the verifier's word, the confidence.

        How far the verifier is off says little where it disagrees; the critic's confidence says more.
        """
        critic, verifier = self.distance(look)
        clear = look.confidence if verifier else min(look.confidence, look.verifier_confidence)
        return critic, verifier > 0, -clear

    def leave(self) -> None:
        """Be done with this noise."""
        self.step, self.noise, self.velocity = 0, None, None


@dataclass(frozen=True)
class StepState:
    """What one step of the pool did, for progress bars, pages and notebooks.

    Attributes:
        pictures: those that were drawn in this step; ``images`` has a row for each.
        images: (b, 3, h, w) in [0, 1], on the CPU.
        soft, hard: (b, k) the critic's counts.
        loss: (b,) the objective; not a number for methods that have none.
        finished: pictures that reached their outcome in this step.
        pre: spent so far by the whole run.
    """

    step: int
    pictures: tuple[Picture, ...]
    images: Float[Tensor, "b 3 h w"]
    soft: Float[Tensor, "b k"]
    hard: Int64[Tensor, "b k"]
    loss: Float[Tensor, " b"]
    finished: tuple[Picture, ...]
    pre: float


@dataclass
class Pool:
    """Steps pictures in batches of at most ``batch``, each as its method and its own history say."""

    adapter: PipelineAdapter
    plan: Plan
    conditioning: Conditioning
    critic: Critic
    verifier: Critic | None
    method: Method
    prices: Prices
    cost: Cost
    batch: int = 16

    def run(self, pictures: Sequence[Picture]) -> Generator[StepState, None, None]:
        """Step until every picture has an outcome. Closing the iterator leaves the others ``cancelled``."""
        waiting, slots, number = deque(pictures), list[Picture](), 0
        try:
            while waiting or slots:
                while waiting and len(slots) < self.batch:
                    slots.append(waiting.popleft())
                climbing = [p for p in slots if self._may_improve(p)]
                looking = [p for p in slots if not self._may_improve(p)]
                for group, gradient in ((climbing, True), (looking, False)):
                    if group:
                        for state in self._fitting(group, gradient, number):
                            yield state
                            number = state.step + 1
                slots = [p for p in slots if not p.outcome]
        finally:
            for picture in pictures:
                if not picture.outcome and picture.best:
                    self._finish(picture, CANCELLED)

    def _fitting(self, group: list[Picture], gradient: bool, number: int) -> Iterator[StepState]:
        """A step in one go, or where memory runs out with a more sparing plan, or in parts.

        Raises:
            MemoryShortage: one picture alone is too much.
        """
        try:
            yield self._step(group, gradient, number)
            return
        except torch.OutOfMemoryError as error:
            before = self.adapter.memory.name
            sparing = self.adapter.reduce_memory()
            if not sparing and len(group) == 1:
                raise shortage(self.adapter, self.plan) from error
        # Outside of the handler, whose traceback would hold on to the graph.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if sparing:
            log.warning("out of memory with the plan %s; going on with %s", before, sparing)
            self.prices = self.prices.again(self.adapter, self.plan)
            yield from self._fitting(group, gradient, number)
            return
        self.batch = half = len(group) // 2
        log.warning("out of memory with %d pictures at once; going on with %d", len(group), half)
        for start in range(0, len(group), half):
            for state in self._fitting(group[start : start + half], gradient, number):
                yield state
                number = state.step + 1

    # -- one step ---------------------------------------------------------------------------------

    def _may_improve(self, picture: Picture) -> bool:
        """Whether a gradient of this picture could still be used, that is followed by one more look."""
        if picture.step >= self.method.steps or not picture.wanted:
            return False
        if picture.noise is None and picture.explored < self.method.draws:
            return False
        need = self.prices.improve() + self.prices.look() + 2 * self.prices.verify()
        return picture.spent + need <= picture.budget

    def _step(self, group: list[Picture], gradient: bool, number: int) -> StepState:
        for picture in group:
            if picture.noise is None:
                picture.candidate, picture.drawn = picture.drawn, picture.drawn + 1
                picture.noise = picture.draw(picture.candidate).to(self.adapter.device)
        noise = Noise.join([p.noise for p in group if p.noise is not None])
        latents = noise.latents
        wanted = _pad([p.wanted for p in group]).to(latents.device)
        with torch.set_grad_enabled(gradient):
            leaf = latents.detach().requires_grad_(gradient)
            rows = self.conditioning.pick([p.row for p in group])
            images = self.adapter.render(replace(noise, latents=leaf), rows, self.plan)
            estimate = self.critic(images, [p.queries["critic"] for p in group])
            loss = torch.full((len(group),), math.nan, device=latents.device)
            if self.method.steps:
                loss = self._objective(estimate, wanted)
            if gradient:
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
        self.cost.charge_render(self.prices, len(group), gradient)
        self.cost.charge(self.prices, "critic", len(group), gradient)
        price = self.prices.improve() if gradient else self.prices.look()
        looks = _looks(group, images.detach(), estimate)
        for picture, look, value in zip(group, looks, loss.tolist(), strict=True):
            picture.spent += price
            picture.climbs += gradient and picture.step == 0
            picture.history.append(
                {
                    "candidate": picture.candidate,
                    "step": picture.step,
                    "error": picture.distance(look)[0],
                    "loss": value,
                    "gradient": float(gradient),
                    "pre": picture.spent,
                }
            )
        looks = self._verify(group, looks)
        for picture, look in zip(group, looks, strict=True):
            picture.plain = picture.plain or look
            if picture.best is None or picture.rank(look) < picture.rank(picture.best):
                picture.best = look
            if not picture.wanted:
                self._finish(picture, NO_COUNT)
            elif self._is_exact(picture, look):
                self._finish(picture, EXACT)
        if gradient:
            self._move(group, latents, slope, loss.detach())
        else:
            for picture, value in zip(group, loss.tolist(), strict=True):
                self._explore(picture, value)
        for picture in group:
            self._stop_or_go_on(picture)
        return StepState(
            number,
            tuple(group),
            images.detach().cpu(),
            estimate.soft.detach().cpu(),
            estimate.hard.cpu(),
            loss.detach().cpu(),
            tuple(p for p in group if p.outcome),
            self.cost.pre,
        )

    def _is_exact(self, picture: Picture, look: Look) -> bool:
        clear = look.confidence >= self.critic.card.min_confidence and (
            self.verifier is None or look.verifier_confidence >= self.verifier.card.min_confidence
        )
        return clear and picture.distance(look) == (0, 0)

    def _objective(self, estimate: CountEstimate, wanted: Tensor) -> Tensor:
        if self.method.objective == "margin":
            return two_sided_margin(estimate, wanted, self.method.margin)
        return OBJECTIVES[self.method.objective](estimate, wanted)

    def _verify(self, group: list[Picture], looks: list[Look]) -> list[Look]:
        """Ask the verifier about pictures that the critic finds exact."""
        if self.verifier is None:
            return [
                replace(look, verifier=look.critic, verifier_confidence=1.0)
                if picture.distance(look)[0] == 0
                else look
                for picture, look in zip(group, looks, strict=True)
            ]
        ask = [i for i, p in enumerate(group) if p.wanted and p.distance(looks[i])[0] == 0]
        checked = self._check([group[i] for i in ask], [looks[i] for i in ask])
        looks = list(looks)
        for i, look in zip(ask, checked, strict=True):
            looks[i] = look
        return looks

    def _check(self, group: list[Picture], looks: list[Look]) -> list[Look]:
        """The looks with the verifier's counts, at its price."""
        if not group or self.verifier is None:
            return looks
        with torch.no_grad():
            batch = torch.stack([look.image for look in looks]).to(self.adapter.device)
            estimate = self.verifier(batch, [p.queries["verifier"] for p in group])
        self.cost.charge(self.prices, "verifier", len(group))
        hard, clear = estimate.hard.tolist(), _lowest_confidence(estimate)
        for picture in group:
            picture.spent += self.prices.verify()
        return [
            replace(
                look, verifier=tuple(row[: len(picture.wanted)]), verifier_confidence=confidence
            )
            for picture, look, row, confidence in zip(group, looks, hard, clear, strict=True)
        ]

    def _move(self, group: list[Picture], latents: Tensor, slope: Tensor, loss: Tensor) -> None:
        """One step of every picture's noise against its own gradient, with momentum.

        The step is Polyak's, as the objectives' least value is known to be 0: loss over slope, at most the
        method's share of the noise's norm.
        """
        length = norms(slope)
        radius = norms(latents)
        unit = slope / length.clamp_min(1e-20)[:, None, None, None]
        reach = torch.minimum(self.method.step_size * radius, loss.abs() / length.clamp_min(1e-20))
        step = unit * reach[:, None, None, None]
        for i, picture in enumerate(group):
            if picture.noise is None:  # finished in this very step
                continue
            if not math.isfinite(float(length[i])):
                picture.broken += 1
                picture.leave()
            elif float(length[i]) == 0:  # every margin is met, and the verifier still disagrees
                picture.leave()
            else:
                past = 0.0 if picture.velocity is None else picture.velocity
                picture.velocity = self.method.momentum * past + step[i : i + 1]
                moved = latents[i : i + 1] - picture.velocity
                picture.noise = replace(
                    picture.noise, latents=renormalise(moved, radius[i : i + 1])
                )
                picture.step += 1

    def _explore(self, picture: Picture, loss: float) -> None:
        """Remember the nearest of the plain draws, and climb from it once there were enough of them."""
        if picture.outcome:
            return
        assert picture.noise is not None
        fresh = picture.step == 0  # else it was the last look of a climb
        if fresh and (picture.start is None or loss < picture.start[0]):
            picture.start = (loss, picture.candidate, picture.noise)
        picture.explored += fresh
        picture.leave()
        if self.method.steps and picture.start and picture.explored >= self.method.draws:
            _, picture.candidate, picture.noise = picture.start
            if not self._may_improve(picture):
                picture.leave()
            picture.explored, picture.start = 0, None

    def _stop_or_go_on(self, picture: Picture) -> None:
        if picture.outcome:
            return
        no_more = 0 < self.method.candidates <= picture.drawn and picture.noise is None
        if no_more or picture.spent + self.prices.look() + self.prices.verify() > picture.budget:
            every = picture.broken and picture.broken == picture.climbs
            self._finish(picture, NON_FINITE if every else BUDGET_SPENT)

    def _finish(self, picture: Picture, outcome: str) -> None:
        if picture.best is not None and picture.best.verifier is None:
            (picture.best,) = self._check([picture], [picture.best])
        if outcome == BUDGET_SPENT and picture.best and picture.distance(picture.best) == (0, 0):
            outcome = CLOSE_CALL
        picture.outcome = outcome
        picture.verified = outcome == EXACT and self.verifier is not None
        picture.noise = picture.velocity = None


def _pad(counts: Sequence[Sequence[int]]) -> Int64[Tensor, "b k"]:
    width = max(map(len, counts))
    rows = [[*row, *[0] * (width - len(row))] for row in counts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(counts), width)


def _lowest_confidence(estimate: CountEstimate) -> list[float]:
    """Of every image the confidence of the noun that has the least; 1 where nothing is counted."""
    clear = estimate.confidence
    return clear.amin(-1).tolist() if clear.shape[-1] else [1.0] * len(clear)


def _looks(group: list[Picture], images: Tensor, estimate: CountEstimate) -> list[Look]:
    hard, images = estimate.hard.tolist(), images.cpu()
    clear = _lowest_confidence(estimate)
    looks = []
    for i, picture in enumerate(group):
        kinds = range(len(picture.wanted))
        boxes = None
        if estimate.candidates is not None:
            found, kept = estimate.candidates.boxes[i], estimate.candidates.kept[i]
            boxes = tuple(found[k][kept[k]].cpu() for k in kinds)
        assert picture.noise is not None
        looks.append(
            Look(
                images[i],
                picture.noise.to("cpu"),
                tuple(hard[i][: len(picture.wanted)]),
                None,
                clear[i],
                0.0,
                boxes,
                picture.candidate,
                picture.step,
            )
        )
    return looks


def shortage(adapter: PipelineAdapter, plan: Plan) -> MemoryShortage:
    """What to say where not even one picture fits."""
    name = adapter.memory.name
    return MemoryShortage(
        f"the device's memory does not suffice for one picture of {plan.width} x {plan.height} with the "
        f"memory plan {name}; take {'a smaller size' if name == 'low' else 'memory=low'}, bfloat16, a tiny "
        "decoder, or free the memory that other programs hold"
    )


def prices_of(
    adapter: PipelineAdapter, plan: Plan, critics: dict[str, tuple[Critic, Query]]
) -> Prices:
    """``Prices.measure``, with a more sparing memory plan where memory runs out.

    Raises:
        MemoryShortage: one picture is too much.
    """
    try:
        return Prices.measure(adapter, plan, critics)
    except torch.OutOfMemoryError as error:
        if not adapter.reduce_memory():
            raise shortage(adapter, plan) from error
    return prices_of(adapter, plan, critics)


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Weights without gradient for a while; afterwards everything is as the user left it."""
    weights = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    for weight, _ in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, flag in weights:
            weight.requires_grad_(flag)
