"""Pictures of a stream of prompts through one pool, so that batches stay full across prompts.

A prompt is encoded when a slot of the pool is free for it, and let go of when its pictures are finished: how
long the list is does not matter.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from countgen.engine.cost import Cost
from countgen.engine.job import Job, Request
from countgen.engine.pool import Pool
from countgen.engine.sharing import using
from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt
from countgen.guidance.methods import Method
from countgen.notes import without_truncation_warning
from countgen.options import DrawOptions
from countgen.pipeline import CountGuidedPipeline
from countgen.prompts import CountPrompt
from countgen.seeds import image_seed
from critics.base import Critic, Query
from pipelines.base import Conditioning, Noise, has_gradient


@dataclass(frozen=True)
class Wanted:
    """One picture to draw.

    Attributes:
        image: which one of its prompt's pictures.
        seed: of the run, or of the prompt where the list gives one.
    """

    prompt: ListedPrompt
    image: int
    seed: int

    def noise_seed(self, candidate: int = 0) -> int:
        """Of the picture's noise; other candidates are drawn when it is not exact."""
        return image_seed(self.seed, self.prompt.id, self.image, candidate)


@dataclass(frozen=True)
class Finished:
    """A picture with its outcome.

    Attributes:
        seconds: its share of the time of all batches that it was in.
    """

    wanted: Wanted
    job: Job
    seconds: float


class Feed:
    """Draws by one method whatever it is given, with one evaluator and one pool."""

    def __init__(
        self, pipeline: CountGuidedPipeline, method: str | Method, draw: DrawOptions
    ) -> None:
        """Check the method and the size.

        Raises:
            UsageError: a method that the pipeline cannot follow, or a size that it cannot draw.
        """
        self.pipeline, self.draw = pipeline, draw
        # One trial at a time from one base: what a picture costs does not depend on how full the batches are.
        self.method = pipeline._checked(method).fitted(width=1)
        try:
            self.plan = pipeline.adapter.plan(
                draw.num_inference_steps, draw.guidance_scale, draw.height, draw.width
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.roles: dict[str, Critic] = {"critic": pipeline.critic}
        if pipeline.verifier is not None:
            self.roles["verifier"] = pipeline.verifier

    def __call__(self, wanted: Iterable[Wanted]) -> Iterator[list[Finished]]:
        """Finished pictures, batch by batch; often none. Closing the iterator drops what is unfinished.

        Raises:
            MemoryShortage: the device is too small for one picture.
        """
        prompts, live = _Prompts(self), dict[int, tuple[Wanted, Job]]()
        seconds: dict[int, float] = defaultdict(float)

        def jobs() -> Iterator[Job]:
            for number, one in enumerate(wanted):
                row, prompt, queries = prompts.row(one.prompt)
                draw, seed = self._draws(one), one.noise_seed()
                job = Job(Request(number, prompt, row, queries, draw, seed, self.draw.budget))
                live[number] = one, job
                yield job

        def finished() -> list[Finished]:
            done = [number for number, (_, job) in live.items() if job.outcome]
            for number in done:
                prompts.release(live[number][1].request.row)
            return [Finished(*live.pop(number), seconds.pop(number, 0.0)) for number in done]

        stream = jobs()
        first = next(stream, None)
        if first is None:
            return
        evaluator = self.pipeline._evaluator(
            [first.prompt], self.plan, self.method, self.roles, None
        )
        prompts.begin(evaluator)
        pool = Pool(evaluator, Cost(), self.draw.batch_size)
        since = time.monotonic()
        for state in pool.run(itertools.chain([first], stream)):
            spent = (time.monotonic() - since) / len(state.jobs)
            for job in state.jobs:
                seconds[job.index] += spent
            yield finished()
            since = time.monotonic()
        yield finished()

    def _draws(self, wanted: Wanted) -> Callable[[int], Noise]:
        def draw(candidate: int) -> Noise:
            own = torch.Generator().manual_seed(wanted.noise_seed(candidate))
            return self.pipeline.adapter.noise([own], self.plan)

        return draw


class _Prompts:
    """Rows of the evaluator, one a prompt, as long as a picture of it is unfinished.

    It stands in for the evaluator's encoded prompts, which a run with a fixed list has from the start.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._encoded: dict[int, Conditioning] = {}
        self._texts: dict[int, Tensor] = {}
        self._prompts: dict[int, CountPrompt] = {}
        self._users: dict[int, int] = {}
        self._last: tuple[str, int, dict[str, Query]] | None = None
        self._begun, self._encodes = False, True
        self._next = 0

    def begin(self, evaluator: Any) -> None:
        """Take the place of what the evaluator was made with, which is the first prompt."""
        self._begun = True
        self._texts.update(enumerate(evaluator.texts))
        evaluator.prompts, evaluator.texts = self._prompts, self._texts
        if evaluator.conditioning is None:  # a source that is called with the texts as they are
            self._encodes = False
        else:
            self._encoded[0] = evaluator.conditioning
            evaluator.conditioning = self

    def row(self, listed: ListedPrompt) -> tuple[int, CountPrompt, dict[str, Query]]:
        """The row of a prompt, made where it is new; pictures of one prompt come one after the other."""
        if self._last is not None and self._last[0] == listed.id and self._last[1] in self._users:
            _, row, queries = self._last
            self._users[row] += 1
            return row, self._prompts[row], queries
        row, self._next = self._next, self._next + 1
        prompt = CountPrompt(listed.prompt, listed.targets)
        nouns = [target.noun for target in listed.targets]
        queries = {role: critic.prepare(nouns) for role, critic in self.feed.roles.items()}
        if self._begun:
            self._encode(row, prompt)
        self._prompts[row], self._users[row] = prompt, 1
        self._last = (listed.id, row, queries)
        return row, prompt, queries

    def _encode(self, row: int, prompt: CountPrompt) -> None:
        pipeline = self.feed.pipeline
        quiet = without_truncation_warning(pipeline.adapter)
        with using(pipeline.adapter), torch.no_grad(), quiet:
            if self._encodes and has_gradient(pipeline.adapter):
                self._encoded[row] = pipeline.adapter.encode([prompt.text], self.feed.plan)
            if self.feed.method.semantic and pipeline.score is not None:
                self._texts[row] = pipeline.score.prepare(prompt.text)

    def release(self, row: int) -> None:
        """A picture of the prompt is finished."""
        self._users[row] -= 1
        if not self._users[row]:
            for table in (self._encoded, self._texts, self._prompts, self._users):
                table.pop(row, None)

    def pick(self, rows: Sequence[int]) -> Conditioning:
        """Encoded prompts of a batch, as ``Conditioning.pick``."""
        return Conditioning.join([self._encoded[row] for row in rows])
