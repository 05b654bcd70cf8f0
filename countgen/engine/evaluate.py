"""Looking at a batch of pictures: drawn, counted, and where asked for, with the way back.

Nothing here changes a job; so what ran out of memory can be done again, in parts or more sparingly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from countgen.engine.actions import (
    Draw,
    Edit,
    Improve,
    MovePrices,
    Record,
)
from countgen.engine.candidates import candidates_of, nouns_seen
from countgen.engine.cost import Passes, PriceList, Prices, gradient_step, plain_look
from countgen.engine.job import Climb, Job, Observation
from countgen.engine.sharing import using
from countgen.engine.verification import Verification, distance, lowest_confidence
from countgen.engine.work import Work
from countgen.guidance import base as rows_of
from countgen.guidance.base import Rows, Score, Start
from countgen.guidance.methods import Method
from countgen.guidance.priors import norms
from countgen.guidance.steps import StepContext
from countgen.guidance.variables import DirectNoise
from countgen.prompts import CountPrompt
from critics.base import CountEstimate, Critic
from pipelines.base import (
    Conditioning,
    ImageSource,
    Noise,
    PipelineAdapter,
    Plan,
    TrajectoryStep,
    has_gradient,
)

DIVERGED = 1.5
"""How many times its first norm, or what part of it, a noise may have before it has diverged."""


@dataclass(frozen=True)
class Seen:
    """What came of one piece of work, to be told to its job."""

    work: Work
    observation: Observation
    passes: Passes
    soft: Float[Tensor, " k"]
    hard: Int64[Tensor, " k"]


@dataclass
class Evaluator:
    """Draws and counts for one run; knows its parts, and nothing of what was tried.

    Attributes:
        conditioning: of the prompts; None where they are handed to a source that is called as it is, which
            serves methods that neither take gradients nor guide steps.
    """

    adapter: ImageSource
    plan: Plan
    critic: Critic
    verifier: Critic | None
    method: Method
    conditioning: Conditioning | None
    prompts: Sequence[CountPrompt]
    prices: PriceList
    score: Score | None = None
    texts: Sequence[Tensor] = ()
    guided: Passes | None = None

    def __call__(self, works: Sequence[Work]) -> list[Seen]:
        """Look at pictures in one batch, either all with gradient or all without."""
        gradient = works[0].gradient or self.method.guide is not None
        with using(self.adapter, self.critic, self.verifier, gradient=gradient):
            return self._look(works)

    def _look(self, works: Sequence[Work]) -> list[Seen]:
        gradient, method = works[0].gradient, self.method
        works = self._begun(works)
        rows = [work.job.request.row for work in works]
        noise = Noise.join([work.noise for work in works]).to(self.adapter.device)
        with torch.inference_mode(False), torch.set_grad_enabled(gradient):
            made, now, leaves, beside = noise, Rows(), Rows(), Passes()
            if self.conditioning is None:
                texts = [self.prompts[row].text for row in rows]
                images = self.adapter.images(noise, texts, self.plan)
            else:
                assert has_gradient(self.adapter)
                start = Start(
                    noise,
                    self.conditioning.pick(rows),
                    tuple(self.prompts[row] for row in rows),
                    tuple(work.job.request.seed for work in works),
                    self.adapter,
                    self.plan,
                )
                conditioning = start.conditioning
                if gradient or any(work.climb for work in works):
                    now = self._rows(works, start)
                    leaves = {name: t.detach().requires_grad_(gradient) for name, t in now.items()}
                    made, conditioning = method.variable.apply(leaves, start)
                if self.early and any(work.limit is not None for work in works):
                    return self._verified(
                        self._in_two_parts(works, start.adapter, made, conditioning, now)
                    )
                if method.guide is not None and isinstance(works[0].action, Draw):
                    images, beside = self._guided(works, start.adapter, made, conditioning)
                else:
                    images = start.adapter.render(made, conditioning, self.plan, method.grad_steps)
            return self._verified(self._counted(works, images, made, now, leaves, beside))

    def _counted(
        self,
        works: Sequence[Work],
        images: Tensor,
        made: Noise,
        now: Rows,
        leaves: Rows,
        beside: Passes,
    ) -> list[Seen]:
        """What the critic sees in pictures, and where asked for the way back from there."""
        device, rows = images.device, [work.job.request.row for work in works]
        finite = images.detach().flatten(1).isfinite().all(1)
        # A picture that is not finite is not counted; a grey one stands in for it in the batch.
        clean = torch.where(per_picture(finite, images), images, 0.5)
        estimate = self.critic(clean, [work.job.request.queries["critic"] for work in works])
        wanted = padded([work.job.request.wanted for work in works]).to(device)
        loss = torch.full((len(works),), math.nan, device=device)
        if self.method.objective is not None:
            loss = self.method.objective(estimate, wanted)
        if self.score is not None:
            fits = self.score(clean, [self.texts[row] for row in rows])
            loss = loss + self.method.semantic * (1 - fits)
        grads: Rows = {}
        if works[0].gradient:
            total = loss + self.method.prior.penalty(made, leaves)
            found = torch.autograd.grad(total.sum(), list(leaves.values()))
            grads = dict(zip(leaves, found, strict=True))
        ahead = self._ahead(works, rows_of.detach(now), grads, loss.detach())
        return self._observed(
            works, images, finite, estimate, loss.detach(), made, now, grads, ahead, beside
        )

    @property
    def early(self) -> int:
        """Evaluations of the denoiser before the early look; 0 where none is taken."""
        return 0 if self.method.early is None else self.method.early.after(self.plan)

    def _in_two_parts(
        self,
        works: Sequence[Work],
        adapter: PipelineAdapter,
        made: Noise,
        conditioning: Conditioning,
        now: Rows,
    ) -> list[Seen]:
        """Pictures of which those are abandoned on the way that their early counts say are too far off."""
        asked = [i for i, work in enumerate(works) if work.limit is not None]
        left, looked = list(range(len(works))), dict[int, Seen]()

        def counted(rows: Sequence[int], images: Tensor, beside: Passes) -> Iterator[Seen]:
            own = Noise.join([made.pick(i) for i in rows])
            then = {name: tensor[rows] for name, tensor in now.items()}
            yield from self._counted([works[i] for i in rows], images, own, then, {}, beside)

        def keep(step: TrajectoryStep) -> Sequence[int] | None:
            if step.step + 1 != self.early:
                return None
            images = adapter.decode(step.clean[asked], self.plan)
            undone = Passes(Counter({"denoiser": self.early - self.plan.evaluations}))
            looked.update(zip(asked, counted(asked, images, undone), strict=True))
            left[:] = [i for i in left if i not in looked or not _hopeless(looked[i])]
            return left

        *_, last = adapter.trajectory(made, conditioning, self.plan, keep=keep)
        seen = {i: _with_early(one, one, abandoned=True) for i, one in looked.items()}
        if left:
            finished = counted(left, adapter.decode(last.latents, self.plan), Passes())
            for i, one in zip(left, finished, strict=True):
                seen[i] = one
                if i in looked:
                    paid = replace(one, passes=one.passes + self._early_passes())
                    seen[i] = _with_early(paid, looked[i], abandoned=False)
        return [seen[i] for i in range(len(works))]

    def _begun(self, works: Sequence[Work]) -> Sequence[Work]:
        """The same, with fresh noises made better where the method does so."""
        first = self.method.first
        drawn = [work for work in works if isinstance(work.action, Draw)]
        if first is None or self.conditioning is None or not drawn:
            return works
        assert has_gradient(self.adapter)
        rows = [work.job.request.row for work in drawn]
        start = Start(
            Noise.join([work.noise for work in drawn]).to(self.adapter.device),
            self.conditioning.pick(rows),
            tuple(self.prompts[row] for row in rows),
            tuple(work.job.request.seed for work in drawn),
            self.adapter,
            self.plan,
        )
        with torch.inference_mode(False), torch.no_grad():
            better = first(start, [work.candidate for work in drawn]).detach().to("cpu")
        changed = {id(work): better.pick(i) for i, work in enumerate(drawn)}
        return [replace(w, noise=changed.get(id(w), w.noise)) for w in works]

    def _guided(
        self,
        works: Sequence[Work],
        adapter: PipelineAdapter,
        noise: Noise,
        conditioning: Conditioning,
    ) -> tuple[Tensor, Passes]:
        """Pictures of a trajectory whose steps are guided, and what each went through beside a plain one."""
        assert self.method.guide is not None
        context = StepContext(
            adapter,
            self.plan,
            self.critic,
            [work.job.request.queries["critic"] for work in works],
            [self.prompts[work.job.request.row] for work in works],
            padded([work.job.request.wanted for work in works]).to(noise.latents.device),
            noise,
            conditioning,
        )
        around, ran = self.method.guide.around(context)
        evaluations = grad_evaluations = 0
        latents = noise.latents
        for step in adapter.trajectory(noise, conditioning, self.plan, around):
            evaluations += step.evaluations // len(works)
            grad_evaluations += step.grad_evaluations // len(works)
            latents = step.latents
        more = Counter({"denoiser": evaluations - self.plan.evaluations})
        passes = ran() + Passes(more, Counter({"denoiser": grad_evaluations}))
        self.guided = passes
        return adapter.decode(latents, self.plan), passes

    def _rows(self, works: Sequence[Work], start: Start) -> Rows:
        """Where the climbs stand; those that begin here at the variable's first rows."""
        begun = self.method.variable.init(start)
        device = start.noise.latents.device
        parts = [
            rows_of.move(work.climb.rows, device) if work.climb else rows_of.pick(begun, i)
            for i, work in enumerate(works)
        ]
        return rows_of.join(parts)

    def _ahead(
        self, works: Sequence[Work], now: Rows, grads: Rows, loss: Tensor
    ) -> list[Climb | None]:
        """Where a step against the gradient leads, for every picture that it leads anywhere."""
        if not grads:
            return [None] * len(works)
        method, device = self.method, loss.device
        lengths = rows_of.row_norms(grads)
        usable = lengths.isfinite() & (lengths > 0) & loss.isfinite()
        safe = {
            name: torch.where(per_picture(usable, grad), grad, torch.zeros_like(grad))
            for name, grad in grads.items()
        }
        parts, states = [], []
        for i, work in enumerate(works):
            own = rows_of.pick(now, i)
            parts.append(rows_of.move(work.climb.first, device) if work.climb else own)
            states.append(
                rows_of.move(work.climb.state, device) if work.climb else method.optimizer.init(own)
            )
        first = rows_of.join(parts)
        with torch.no_grad():
            moved, state = method.optimizer.update(
                safe, rows_of.join(states), now, torch.where(loss.isfinite(), loss, 0.0)
            )
            moved = method.prior.project(moved, first)
        moved, state, first = (rows_of.move(part, "cpu") for part in (moved, state, first))
        return [
            Climb(
                rows_of.pick(moved, i),
                rows_of.pick(first, i),
                work.noise,
                rows_of.pick(state, i),
                work.step + 1,
            )
            if bool(usable[i])
            else None
            for i, work in enumerate(works)
        ]

    def _observed(
        self,
        works: Sequence[Work],
        images: Tensor,
        finite: Tensor,
        estimate: CountEstimate,
        loss: Tensor,
        made: Noise,
        now: Rows,
        grads: Rows,
        ahead: Sequence[Climb | None],
        beside: Passes,
    ) -> list[Seen]:
        pictures, made = images.detach().float().cpu(), made.detach().to("cpu")
        hard, soft = estimate.hard.cpu(), estimate.soft.detach().float().cpu()
        confidence = lowest_confidence(estimate)
        lengths = rows_of.row_norms(grads).tolist() if grads else [math.nan] * len(works)
        radius = norms(made.latents).tolist()
        candidates = candidates_of(estimate, [len(work.job.request.wanted) for work in works])
        seen: list[Seen] = []
        for i, work in enumerate(works):
            request = work.job.request
            kinds = len(request.wanted)
            counts = tuple(hard[i, :kinds].tolist()) if finite[i] else (0,) * kinds
            own = made.pick(i)
            begun = float(norms(work.noise.latents)[0])
            diverged = not begun / DIVERGED <= radius[i] <= begun * DIVERGED
            record = Record(
                number=work.number,
                move=_MOVES[type(work.action)],
                base=work.base,
                candidate=work.candidate,
                step=work.step,
                gradient=work.gradient,
                moved=ahead[i] is not None and not diverged,
                counts=counts,
                verifier=None,
                confidence=confidence[i] if finite[i] else 0.0,
                verifier_confidence=0.0,
                exact=False,
                error=distance(counts, request.wanted) if finite[i] else FAR,
                verifier_error=None,
                loss=float(loss[i]) if finite[i] else math.nan,
                soft=tuple(soft[i, :kinds].tolist()),
                finite=bool(finite[i]),
                pre=0.0,
                changes=work.action.changes if isinstance(work.action, Edit) else (),
                nouns=nouns_seen(candidates[i], counts, request.wanted, images.shape[-2:]),
                norm=radius[i],
                drift=float(norms(own.latents - work.noise.latents)[0]),
                grad_norm=lengths[i],
                diverged=diverged,
            )
            rows = None
            if now and not isinstance(self.method.variable, DirectNoise):
                rows = rows_of.move(rows_of.pick(rows_of.detach(now), i), "cpu")
            picture = pictures[i].clone()
            observation = Observation(
                record,
                picture,
                (picture.shape[1], picture.shape[2]),
                own,
                rows,
                candidates[i],
                ahead[i],
            )
            seen.append(Seen(work, observation, self._passes(work) + beside, soft[i], hard[i]))
        return seen

    def move_prices(self, prices: Prices) -> MovePrices:
        """What a policy is told of what its moves cost; every guided draw runs what the last one did."""
        score = ("score",) if self.score is not None else ()
        beside = (*self.method.variable.modules, *score)
        # The look that ends a climb runs what the variable runs.
        climbs = "improve" in self.method.policy.moves
        looked = plain_look(self.plan.evaluations, beside if climbs else score)
        # Policies see one price of a look; where fresh noises are made better, every look is as dear as a
        # draw, so that no budget is overdrawn. Where there are early looks, every look is as dear as one that
        # is finished after it.
        first = Passes(Counter({"first": 1})) if self.method.first is not None else Passes()
        look = prices.of(looked + (self.guided or Passes()) + first + self._early_passes())
        step = gradient_step(self.plan.evaluations, beside, self.method.grad_steps)
        return MovePrices(look, prices.verify(), prices.of(step))

    def _early_passes(self) -> Passes:
        """What a picture goes through beside a plain one for its early look."""
        if not self.early:
            return Passes()
        score = {"score": 1} if self.score is not None else {}
        return Passes(Counter({"decoder": 1, "critic": 1, **score}))

    def _passes(self, work: Work) -> Passes:
        beside = self.method.variable.modules if work.gradient or work.climb else ()
        if self.score is not None:
            beside = (*beside, "score")
        passes = Passes()
        if self.method.first is not None and isinstance(work.action, Draw):
            passes = Passes(Counter({"first": 1}))
        if work.gradient:
            passes += gradient_step(self.plan.evaluations, beside, self.method.grad_steps)
        else:
            passes += plain_look(self.plan.evaluations, beside)
        return passes

    def _verified(self, seen: list[Seen]) -> list[Seen]:
        """The same, with the verifier's word on pictures that the critic finds exact, and what was spent."""
        ask = [
            i
            for i, one in enumerate(seen)
            if one.work.job.request.wanted and one.observation.record.error == 0
        ]
        jobs = [seen[i].work.job for i in ask]
        told = self.verify([seen[i].observation for i in ask], jobs)
        for i, job, observation in zip(ask, jobs, told, strict=True):
            passes = seen[i].passes + self.verification.passes(job)
            seen[i] = replace(seen[i], observation=observation, passes=passes)
        return seen

    @property
    def verification(self) -> Verification:
        return Verification(self.critic, self.verifier)

    def verify(self, observations: Sequence[Observation], jobs: Sequence[Job]) -> list[Observation]:
        """Observations with what both counters say of them, see ``Verification``."""
        return self.verification(observations, jobs, self.adapter.device)


_MOVES: dict[type, Any] = {Draw: "draw", Edit: "edit", Improve: "improve"}
FAR = 10**6
"""The error of a picture that cannot be counted."""


def _hopeless(early: Seen) -> bool:
    record, limit = early.observation.record, early.work.limit
    return limit is not None and record.finite and record.error > limit


def _with_early(seen: Seen, early: Seen, *, abandoned: bool) -> Seen:
    """What came of a picture, with what was counted early."""
    counts = early.observation.record.counts
    record = replace(seen.observation.record, early=counts, abandoned=abandoned)
    return replace(seen, observation=replace(seen.observation, record=record))


def per_picture(values: Tensor, like: Tensor) -> Tensor:
    """(b,) as it selects among tensors of b rows."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def padded(counts: Sequence[Sequence[int]]) -> Int64[Tensor, "b k"]:
    """Wanted counts of a batch, padded with 0 to the most kinds."""
    width = max(map(len, counts))
    rows = [[*row, *[0] * (width - len(row))] for row in counts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(counts), width)
