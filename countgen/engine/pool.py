"""Continuous batching: every job's policy is asked, the fullest batch is looked at, and the jobs are told.

A job's decisions read only its own history; the pool decides only *when* something is looked at, so that
results depend neither on the batch size nor on the other jobs. A finished job leaves its slot to the next
one, and so does one that waits for the other kind of batch: looks with gradient and without never share one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from countgen.engine.actions import Action, Draw, Edit, Improve, Record, Stop
from countgen.engine.cost import Cost, Passes, Prices
from countgen.engine.evaluate import Evaluator, Seen
from countgen.engine.job import (
    BUDGET_SPENT,
    CANCELLED,
    EXACT,
    FAILED,
    NO_COUNT,
    NON_FINITE_PICTURE,
    OUTCOMES,
    Job,
    Observation,
)
from countgen.engine.sharing import using
from countgen.engine.work import Work, prepare
from countgen.errors import MemoryShortage
from pipelines.base import ImageSource, Plan
from pipelines.memory import PLANS

log = logging.getLogger("countgen")


@dataclass(frozen=True)
class StepState:
    """What one batch showed, for progress bars, pages and notebooks.

    Attributes:
        step: number of the batch.
        jobs: those that were looked at; every other field has a row for each. A job may come twice.
        records: of these looks.
        images: (b, 3, h, w) in [0, 1], on the CPU; the receiver's own.
        soft, hard: (b, k) the critic's counts.
        loss: (b,) the objective; not a number for methods that have none.
        finished: jobs that reached their outcome in this step.
        pre: spent so far by the whole run.
    """

    step: int
    jobs: tuple[Job, ...]
    records: tuple[Record, ...]
    images: Float[Tensor, "b 3 h w"]
    soft: Float[Tensor, "b k"]
    hard: Int64[Tensor, "b k"]
    loss: Float[Tensor, " b"]
    finished: tuple[Job, ...]
    pre: float


@dataclass
class Pool:
    """Looks at the pictures of a run in batches of at most ``batch``.

    Attributes:
        steps: batches so far, by whether they took a gradient: (batches, pictures).
    """

    look: Evaluator
    cost: Cost
    batch: int = 16
    steps: dict[bool, tuple[int, int]] = field(
        default_factory=lambda: {False: (0, 0), True: (0, 0)}
    )

    def run(self, jobs: Iterable[Job]) -> Generator[StepState, None, None]:
        """Until every job has an outcome. Closing the iterator leaves the others ``cancelled``.

        A job is begun when it would leave a slot empty not to, so that a stream of any length can be drawn;
        fewer than twice as many as fit into a batch are under way.
        """
        waiting, pending = iter(jobs), list[Work]()
        begun, number, unreported = time.monotonic(), 0, list[Job]()
        left = Counter[int]()  # by job: looks that it asked for and has not seen
        try:
            while True:
                while len(self._fullest(pending)) < self.batch:
                    job = next(waiting, None)
                    if job is None:
                        break
                    unreported.append(job)
                    asked = self._ask(job, time.monotonic() - begun)
                    left[id(job)] = len(asked)
                    pending += asked
                if not pending:
                    return
                chosen = self._fullest(pending)
                taken = {id(work) for work in chosen}
                pending = [work for work in pending if id(work) not in taken]
                for seen in self._fitting(chosen):
                    self._tell(seen)
                    left.subtract(id(one.work.job) for one in seen)
                    # All that a job had asked for is seen before it ends or asks again, so that it does not
                    # depend on how the batches were cut; it asks at once, so that its end is told of here.
                    for job in {one.work.job.index: one.work.job for one in seen}.values():
                        if left[id(job)] or job.outcome:
                            continue
                        self._settle(job)
                        asked = self._ask(job, time.monotonic() - begun) if not job.outcome else []
                        left[id(job)] = len(asked)
                        pending += asked
                    if seen:
                        over = [job for job in unreported if job.outcome]
                        unreported = [job for job in unreported if not job.outcome]
                        for job in over:
                            left.pop(id(job), None)
                        yield self._state(number, seen, over)
                        number += 1
                pending = [work for work in pending if not work.job.outcome]
        finally:
            for job in unreported:
                if not job.outcome and job.best is not None:
                    self._finish(job, CANCELLED)

    # -- ask ----------------------------------------------------------------------------------------

    def prices(self, job: Job) -> Prices:
        return self.look.prices.of(job.request.queries)

    def _ask(self, job: Job, elapsed: float) -> list[Work]:
        method, request = self.look.method, job.request
        if job.records and request.seconds is not None and elapsed >= request.seconds:
            self._finish(job, BUDGET_SPENT)
            return []
        try:
            moves = self.look.move_prices(self.prices(job))
            answer = method.policy(job.view(moves))
            if isinstance(answer, Stop):
                self._finish(job, answer.outcome)
                return []
            if not isinstance(answer, Sequence) or not answer:
                asked = (
                    "nothing" if isinstance(answer, Sequence) else f"{answer!r}, not for several"
                )
                raise ValueError(f"the policy of {method.name} asks for {asked}, and does not stop")
            return self._works(job, answer)
        except Exception as error:
            self._fail(job, error)
            return []

    def _works(self, job: Job, actions: Sequence[Action]) -> list[Work]:
        allowed = self.look.method.policy.moves
        drawn = sum(record.move == "draw" for record in job.records)
        works: list[Work] = []
        for place, action in enumerate(actions):
            move = {Draw: "draw", Edit: "edit", Improve: "improve"}.get(type(action))
            if move is None:
                raise ValueError(
                    f"the policy of {self.look.method.name} asks for {action!r}, which is no Draw, Edit or "
                    "Improve"
                )
            if move not in allowed:
                raise ValueError(f"the policy asks to {move}, which it did not say that it would")
            number = len(job.records) + place
            works.append(prepare(job, action, number, drawn, self.look.method))
            drawn += move == "draw"
        if len({work.gradient for work in works}) > 1:
            # The pool would choose which comes first, and the history would depend on the other jobs.
            raise ValueError(
                f"the policy of {self.look.method.name} asks for looks with and without gradient at once; "
                "ask for one after the other"
            )
        return works

    def _fullest(self, pending: Sequence[Work]) -> list[Work]:
        """The kind of work of which there is most, at most a batch, in the order of asking."""
        kinds = [[w for w in pending if w.gradient is kind] for kind in (True, False)]
        return max(kinds, key=len)[: self.batch]

    # -- look ---------------------------------------------------------------------------------------

    def _fitting(self, works: list[Work]) -> Iterator[list[Seen]]:
        """Looks at all of it in one go, or where memory runs out with a more sparing plan, or in parts.

        Raises:
            MemoryShortage: one picture alone is too much.
        """
        adapter = self.look.adapter
        try:
            seen = self.look(works)
        except torch.OutOfMemoryError as error:
            before = adapter.memory.name
            with using(adapter):
                sparing = adapter.reduce_memory()
            if not sparing and len(works) == 1:
                raise shortage(adapter, self.look.plan) from error
        except Exception as error:
            if len(works) == 1:
                self._fail(works[0].job, error)
                yield []
                return
            sparing, before = None, ""
            log.debug("a batch failed (%s); each of its pictures is looked at alone", error)
            yield from self._singly(works)
            return
        else:
            gradient = works[0].gradient
            batches, pictures = self.steps[gradient]
            self.steps[gradient] = batches + 1, pictures + len(works)
            yield seen
            return
        # Outside of the handler, whose traceback would hold on to the graph.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if sparing:
            log.warning("out of memory with the plan %s; going on with %s", before, sparing)
            self.look.prices.refresh()
            yield from self._fitting(works)
            return
        self.batch = half = len(works) // 2
        log.warning("out of memory with %d pictures at once; going on with %d", len(works), half)
        for start in range(0, len(works), half):
            yield from self._fitting(works[start : start + half])

    def _singly(self, works: Sequence[Work]) -> Iterator[list[Seen]]:
        for work in works:
            if not work.job.outcome:
                yield from self._fitting([work])

    # -- tell ---------------------------------------------------------------------------------------

    def _tell(self, seen: Sequence[Seen]) -> None:
        """The only commit: records, charges, outcomes."""
        for one in seen:
            job, prices = one.work.job, self.prices(one.work.job)
            self.cost.charge(prices, one.passes)
            spent = job.spent + prices.of(one.passes)
            record = replace(one.observation.record, number=len(job.records), pre=spent)
            job.tell(replace(one.observation, record=record))

    def _settle(self, job: Job) -> None:
        """The outcome of a job whose last looks tell it."""
        if job.outcome:
            return
        if not job.request.wanted:
            self._finish(job, NO_COUNT if job.records[-1].finite else NON_FINITE_PICTURE)
        elif job.best is not None and job.best.record.exact:
            self._finish(job, EXACT)

    def _finish(self, job: Job, outcome: str) -> None:
        """Give a job its outcome; the verifier is asked about what is kept where it was not yet."""
        best = job.best
        asked = best is None or best.record.verifier is not None or not best.record.finite
        if not asked and best is not None and self.look.verifier is not None and job.request.wanted:
            try:
                (job.best,) = self._verify(best, job)
                passes, prices = Passes(forwards=_once("verifier")), self.prices(job)
                self.cost.charge(prices, passes)
                job.spent += prices.of(passes)
            except Exception as error:
                self._fail(job, error)
                return
        if outcome not in OUTCOMES:
            self._fail(job, ValueError(f"{outcome!r} is no outcome"))
            return
        job.finish(outcome)

    def _verify(self, best: Observation, job: Job) -> list[Observation]:
        """The verifier's word on one picture, with a more sparing plan where memory runs out."""
        try:
            with using(self.look.adapter, gradient=False):
                return self.look.verify([best], [job])
        except torch.OutOfMemoryError:
            with using(self.look.adapter):
                sparing = self.look.adapter.reduce_memory()
            if not sparing:
                raise
        log.warning("out of memory in the verifier; going on with the memory plan %s", sparing)
        self.look.prices.refresh()
        return self._verify(best, job)

    def _fail(self, job: Job, error: Exception) -> None:
        log.warning("picture %d failed: %s", job.index, error)
        job.finish(FAILED, error)

    def _state(self, number: int, seen: Sequence[Seen], over: Sequence[Job]) -> StepState:
        return StepState(
            number,
            tuple(one.work.job for one in seen),
            tuple(_records(seen)),
            torch.stack([one.observation.image for one in seen]),
            # What was counted early may have been so beside pictures of more kinds than the rest.
            pad_sequence([one.soft for one in seen], batch_first=True),
            pad_sequence([one.hard for one in seen], batch_first=True),
            torch.tensor([one.observation.record.loss for one in seen]),
            tuple(over),
            self.cost.pre,
        )


def _once(module: str) -> Counter[str]:
    return Counter({module: 1})


def _records(seen: Sequence[Seen]) -> list[Record]:
    """The records that these looks became, in their order: the last ones of their jobs."""
    left = Counter(one.work.job.index for one in seen)
    found = []
    for one in seen:
        job = one.work.job
        found.append(job.records[len(job.records) - left[job.index]])
        left[job.index] -= 1
    return found


def shortage(adapter: ImageSource, plan: Plan) -> MemoryShortage:
    """What to say where not even one picture fits."""
    name = adapter.memory.name
    if name not in PLANS:
        return MemoryShortage(
            f"the device's memory does not suffice for one picture of {plan.width} x {plan.height}; offload "
            "the pipeline (enable_model_cpu_offload()), take a smaller size, or free the memory that other "
            "programs hold"
        )
    return MemoryShortage(
        f"the device's memory does not suffice for one picture of {plan.width} x {plan.height} with the "
        f"memory plan {name}; take {'a smaller size' if name == 'low' else 'memory=low'}, bfloat16, a tiny "
        "decoder, or free the memory that other programs hold"
    )
