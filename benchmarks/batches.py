"""What continuous batching saves, how full its batches are, and what the engine takes beside its models.

python -m benchmarks.batches --json

The same pictures twice, by the same method. continuous: one pool, in which a finished picture leaves its
slot to the next. static: groups as large as a batch, each finished before the next begins, in which the
slots of finished pictures stay empty. Bookkeeping is all of a run's time in which neither generator nor
critic nor verifier works, the way back through them included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics as stats
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from countgen import CountGuidedPipeline, noises
from countgen.engine.best_move import BestMove
from countgen.engine.cost import Cost, PriceList
from countgen.engine.evaluate import Evaluator
from countgen.engine.job import Job, Request
from countgen.engine.pool import Pool, StepState
from countgen.guidance.methods import Method, find_method
from countgen.pocket.suites import SuitePrompt, suite
from countgen.presets import EMBEDDED
from countgen.prompts import parse_prompt
from countgen.seeds import image_seed

SUITES = ("pocket-small", "pocket-dense", "pocket-multi")
ARMS = ("continuous", "static")
MODELS = ("generator", "critic", "verifier", "backward")


class Clock:
    """Seconds by who worked; of nested work the inner part counts for its own owner alone."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self._inner = [0.0]

    def timed(self, owner: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            self._inner.append(0.0)
            try:
                return work(*given, **named)
            finally:
                whole = time.perf_counter() - begun
                self.seconds[owner] += whole - self._inner.pop()
                self._inner[-1] += whole

        return run


class Watched:
    """A part of the pipeline with some of its methods timed."""

    def __init__(self, part: Any, clock: Clock, owner: str, *methods: str) -> None:
        self._part = part
        self._call = clock.timed(owner, part) if callable(part) else None
        for name in methods:
            setattr(self, name, clock.timed(owner, getattr(part, name)))

    def __call__(self, *given: Any) -> Any:
        assert self._call is not None
        return self._call(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@dataclass
class Fill:
    """Slots of batches and pictures in them, by whether a gradient was taken."""

    batches: Counter[bool] = field(default_factory=Counter)
    slots: Counter[bool] = field(default_factory=Counter)
    pictures: Counter[bool] = field(default_factory=Counter)

    def add(self, state: StepState, width: int) -> None:
        kind = state.records[0].gradient
        self.batches[kind] += 1
        self.slots[kind] += width
        self.pictures[kind] += len(state.jobs)

    def report(self) -> dict[str, Any]:
        return {
            name: {
                "batches": self.batches[kind],
                "fill": round(self.pictures[kind] / self.slots[kind], 4)
                if self.slots[kind]
                else None,
            }
            for name, kind in (("gradient", True), ("plain", False))
        }


@dataclass(frozen=True)
class Ran:
    """One run.

    Attributes:
        owners: seconds by who worked; "policy" is a part of bookkeeping.
        calls: of the evaluator, one a batch.
        fill: of batches while more pictures were unfinished than fit into one, and while some were not begun.
        told: of every picture all that must not depend on how it was batched.
    """

    seconds: float
    owners: dict[str, float]
    calls: int
    fill: dict[str, Any]
    told: list[Any]
    verified: int

    @property
    def shares(self) -> dict[str, float]:
        """Of the seconds: of every model, of bookkeeping, and of the choice of moves, which is part of it."""
        models = {name: self.owners.get(name, 0.0) / self.seconds for name in MODELS}
        choosing = self.owners.get("policy", 0.0) / self.seconds
        return models | {"bookkeeping": 1 - sum(models.values()), "policy": choosing}


class Bench:
    """One method on fixed prompts, run anew as often as wanted."""

    def __init__(
        self, pipeline: CountGuidedPipeline, prompts: Sequence[SuitePrompt], options: Any
    ) -> None:
        self.options, self.clock = options, Clock()
        self.method: Method = find_method("engine").fitted(rates=EMBEDDED["pocket"].rates())
        self.prompts = [parse_prompt(prompt.prompt, prompt.targets) for prompt in prompts]
        self.ids = [prompt.id for prompt in prompts]
        self.adapter = Watched(pipeline.adapter, self.clock, "generator", "render", "noise")
        self.plan = pipeline.adapter.plan()
        self.roles: dict[str, Any] = {
            "critic": Watched(pipeline.critic, self.clock, "critic"),
            "verifier": Watched(pipeline.verifier, self.clock, "verifier"),
        }
        self.queries = [
            {
                role: critic.prepare([target.noun for target in prompt.targets])
                for role, critic in self.roles.items()
            }
            for prompt in self.prompts
        ]
        self.rows = pipeline.adapter.encode([prompt.text for prompt in self.prompts], self.plan)
        adapter: Any = self.adapter
        self.prices = PriceList(adapter, self.plan, self.roles)
        for (
            queries
        ) in self.queries:  # measured once for every shape, as any run does at its first look
            self.prices.of(queries)

    def jobs(self) -> list[Job]:
        adapter: Any = self.adapter
        draws = noises.draws(adapter, self.ids, 1, self.options.seed, None, None, self.plan)
        return [
            Job(
                Request(
                    i,
                    prompt,
                    i,
                    self.queries[i],
                    draws[i],
                    image_seed(self.options.seed, self.ids[i]),
                    self.options.budget,
                )
            )
            for i, prompt in enumerate(self.prompts)
        ]

    def __call__(self, arm: str) -> Ran:
        adapter: Any = self.adapter
        look = Evaluator(
            adapter,
            self.plan,
            self.roles["critic"],
            self.roles["verifier"],
            self.method,
            self.rows,
            self.prompts,
            self.prices,
        )
        pool, jobs, width = Pool(look, Cost(), self.options.batch), self.jobs(), self.options.batch
        groups = [jobs]
        if arm == "static":
            groups = [jobs[start : start + width] for start in range(0, len(jobs), width)]
        self.clock.seconds.clear()
        queued, waited = Fill(), Fill()
        with self._watched():
            begun = time.perf_counter()
            for group in groups:
                waiting, left = iter(group), Counter(waiting=len(group), unfinished=len(group))
                for state in pool.run(_counting(waiting, left)):
                    if left["unfinished"] > width:
                        queued.add(state, width)
                    if left["waiting"]:
                        waited.add(state, width)
                    left["unfinished"] -= len(state.finished)
            seconds = time.perf_counter() - begun
        return Ran(
            seconds,
            dict(self.clock.seconds),
            sum(batches for batches, _ in pool.steps.values()),
            {"jobs_outnumber_slots": queued.report(), "jobs_not_begun": waited.report()},
            [_told(job) for job in jobs],
            sum(job.verified for job in jobs),
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The way back and the choice of moves are functions, which are timed where they stand."""
        back = self.clock.timed("backward", torch.autograd.grad)
        choose = self.clock.timed("policy", BestMove.__call__)
        with (
            patch.object(torch.autograd, "grad", back),
            patch.object(BestMove, "__call__", lambda policy, view: choose(policy, view)),
        ):
            yield


def _counting(jobs: Iterator[Job], left: Counter[str]) -> Iterator[Job]:
    for job in jobs:
        left["waiting"] -= 1
        yield job


def _told(job: Job) -> Any:
    return job.outcome, [(r.move, r.base, r.changes, r.counts, r.verifier) for r in job.records]


def compared(runs: dict[str, list[Ran]]) -> dict[str, Any]:
    """Continuous over static batches, in pairs of runs that followed each other, and both apart."""
    pairs = list(zip(*(runs[arm] for arm in ARMS), strict=True))
    first = {arm: several[0] for arm, several in runs.items()}
    same = [one == two for one, two in zip(*(first[arm].told for arm in ARMS), strict=True)]
    ends = [one[0] == two[0] for one, two in zip(*(first[arm].told for arm in ARMS), strict=True)]
    return {
        "seconds_ratio": _spread([one.seconds / two.seconds for one, two in pairs]),
        "calls_ratio": round(first["continuous"].calls / first["static"].calls, 4),
        "same_outcomes": sum(ends) / len(ends),
        "same_histories": sum(same) / len(same),
        "arms": {
            arm: {
                "seconds": _spread([run.seconds for run in several]),
                "calls": first[arm].calls,
                "verified": first[arm].verified,
                "share_of_time": {
                    name: _spread([run.shares[name] for run in several])
                    for name in first[arm].shares
                },
                "fill": first[arm].fill,
            }
            for arm, several in runs.items()
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": stats.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--prompts", type=int, default=64, help="drawn by seed from three suites")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--seed", type=int, default=64, help="of the choice, and run seed")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    every = [prompt for name in SUITES for prompt in suite(name)]
    prompts = random.Random(options.seed).sample(every, options.prompts)
    bench = Bench(CountGuidedPipeline.from_pretrained("pocket"), prompts, options)
    runs: dict[str, list[Ran]] = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        for arm in ARMS if repeat % 2 == 0 else ARMS[::-1]:
            print(f"{arm}, repeat {repeat + 1} of {options.repeats}", file=sys.stderr)
            runs[arm].append(bench(arm))
    report = {
        "command": f"python -m benchmarks.batches --json --prompts {options.prompts} --repeats "
        f"{options.repeats} --seed {options.seed} --budget {options.budget:g} --batch {options.batch}",
        "threads": torch.get_num_threads(),
        "n_prompts": len(prompts),
        "batch": options.batch,
        **compared(runs),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
