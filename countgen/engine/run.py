"""One run: the states that it yields, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image

from countgen.engine.actions import Record
from countgen.engine.cost import Clock, Cost, peak_bytes
from countgen.engine.job import CANCELLED, Job, Observation
from countgen.engine.pool import Pool, StepState
from countgen.guidance.base import Rows
from pipelines.base import Noise


@dataclass(frozen=True)
class CountPipelineOutput:
    """Finished pictures and all that is known of them, one entry a picture.

    Attributes:
        images: PIL images, or for ``output_type`` "pt" and "np" an array in [0, 1]:
            (n, 3, h, w) and (n, h, w, 3).
        counts: role -> noun -> count, for critic and verifier.
        verified: critic and verifier both count exactly, and neither narrowly.
        trust: of verified pictures the probability that another counter agrees (``countgen trust``); None of
            the others, and where there is no fit for this generator and its counters.
        outcomes: a key of ``countgen.engine.job.OUTCOMES``, which has a sentence for each.
        history: a record for every time the picture was looked at.
        cost: of the whole call.
        noise: of each kept picture: (n, c, h, w) float32 latents, and what the sampler adds at its steps. A
            seed alone cannot reproduce a guided picture; ``pipeline(prompt, latents=noise,
            guidance="none")`` does.
        rows: of each picture what was optimised beside its noise, such as a count token; None where nothing.
        jobs: everything else: plain first draws, boxes, errors.
    """

    images: Any
    counts: list[dict[str, dict[str, int]]]
    verified: list[bool]
    outcomes: list[str]
    history: list[list[Record]]
    cost: Cost
    noise: Noise
    rows: list[Rows | None] = field(repr=False, default_factory=list)
    jobs: list[Job] = field(repr=False, default_factory=list)
    trust: list[float | None] = field(default_factory=list)


class Run:
    """States of a run, one a batch; iterating does the work. Nothing of it is kept on the pipeline."""

    def __init__(
        self,
        jobs: list[Job],
        start: Callable[[Cost], Pool],
        device: torch.device,
        notes: Sequence[str] = (),
        trust: Callable[[Job], float | None] = lambda job: None,
    ) -> None:
        """A run of these jobs.

        Args:
            notes: what of the prompts was not understood or is not read.
            trust: how sure a finished picture is.
        """
        self.jobs, self.cost, self.notes, self.trust = jobs, Cost(), tuple(notes), trust
        self._device, self._start, self._cancelled = device, start, threading.Event()
        self._states = self._work()

    def __iter__(self) -> Iterator[StepState]:
        return self

    def __next__(self) -> StepState:
        return next(self._states)

    def cancel(self) -> None:
        """Stop before the next batch, from any thread; what is unfinished stays as it is, ``cancelled``."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop at once, from the thread that iterates."""
        self._cancelled.set()
        self._states.close()
        self._leave()

    def output(self, output_type: str = "pil") -> CountPipelineOutput:
        """What is finished, or was had of each picture so far.

        Raises:
            Exception: what was raised on every single picture.
        """
        errors = [job.error for job in self.jobs if job.error is not None]
        if errors and len(errors) == len(self.jobs):
            raise errors[0]
        pairs = [(job, job.best) for job in self.jobs if job.best is not None]
        done, best = [job for job, _ in pairs], [seen for _, seen in pairs]
        if best:
            stack = torch.stack([seen.image for seen in best])
            noise = Noise.join([seen.noise for seen in best])
        else:
            stack, noise = torch.zeros(0, 3, 0, 0), Noise(torch.zeros(0, 0, 0, 0))
        return CountPipelineOutput(
            _images(stack, output_type),
            [counts_of(job) for job in done],
            [job.verified for job in done],
            [job.outcome for job in done],
            [job.records for job in done],
            self.cost,
            noise,
            [seen.rows for seen in best],
            done,
            [self.trust(job) for job in done],
        )

    def _leave(self) -> None:
        """Pictures that were not begun, or not looked at yet, have an outcome too."""
        for job in self.jobs:
            if not job.outcome:
                job.finish(CANCELLED)

    def _work(self) -> Generator[StepState, None, None]:
        clock = Clock()
        states: Any = iter(())
        try:
            pool = self._start(self.cost)
            states = pool.run(self.jobs)
            while not self._cancelled.is_set():
                state = next(states, None)
                self.cost.seconds = clock.seconds()
                if state is None:
                    break
                yield state
        finally:
            if hasattr(states, "close"):
                states.close()
            self._leave()
            self.cost.seconds = clock.seconds()
            self.cost.peak_bytes = peak_bytes(self._device)


def counts_of(job: Job, seen: Observation | None = None) -> dict[str, dict[str, int]]:
    """Role -> noun -> count, of a picture's best look, or of another one."""
    seen = seen or job.best
    found: dict[str, dict[str, int]] = {}
    if seen is None or not seen.record.finite:
        return found
    for role, counts in (("critic", seen.record.counts), ("verifier", seen.record.verifier)):
        if counts is not None:
            found[role] = dict(zip(job.request.nouns, counts, strict=True))
    return found


def _images(stack: Float[torch.Tensor, "n 3 h w"], output_type: str) -> Any:
    if output_type == "pil":
        return [to_pil(image) for image in stack]
    return stack.permute(0, 2, 3, 1).numpy() if output_type == "np" else stack


def to_pil(picture: Float[torch.Tensor, "3 h w"]) -> Image.Image:
    """An RGB picture from values in [0, 1]; what is no number is black."""
    pixels = (picture.detach().float().nan_to_num(0).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy(), "RGB")
