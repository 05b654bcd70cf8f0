"""The pool: results that depend on nothing but a job's own history, and faults that stay with one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen import CountGuidedPipeline
from countgen.engine.actions import Answer, Change, Draw, Edit, Improve, Stop, View
from countgen.engine.cost import Cost, PriceList
from countgen.engine.early import EarlyLook
from countgen.engine.evaluate import Evaluator
from countgen.engine.job import OUTCOMES, Job, Request
from countgen.engine.policy import DrawThenEdit, DrawThenImprove
from countgen.engine.pool import Pool
from countgen.errors import MemoryShortage
from countgen.guidance.methods import Method, find_method
from countgen.pipeline import CountPipelineOutput
from countgen.pocket import load_critic
from countgen.prompts import parse_prompt
from critics.base import CountEstimate, Query
from critics.detectors.base import DetectionCritic
from critics.parts.readout import Detections, ReadOut
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Noise

NEVER = [("dog", 1), ("cat", 19)]
"""Never exact, so that a picture goes on until its budget is spent."""


class Around:
    """A part of the real pipeline in which one method is another's."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self.__dict__ |= {"inner": inner, "calls": 0} | methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Counter(Around):
    """A real counter whose call goes through ``count``."""

    def __call__(self, images: Tensor, queries: Sequence[Query]) -> CountEstimate:
        self.__dict__["calls"] += 1
        found: CountEstimate = self.count(self.inner, images, queries, self.calls)
        return found


def parts(
    pipeline: CountGuidedPipeline, guidance: Any = "none", **changed: Any
) -> CountGuidedPipeline:
    """The same pipeline with some other parts."""
    own = {"adapter": pipeline.adapter, "critic": pipeline.critic, "verifier": pipeline.verifier}
    own |= changed
    found = CountGuidedPipeline(pipeline.adapter, own["critic"], own["verifier"], guidance)
    found.adapter = own["adapter"]
    return found


def test_what_a_job_has_spent_grows_with_every_look(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream("twenty dogs", targets=NEVER, guidance="best-of-n", budget=9)
    paid = [next(run).records[0].pre for _ in range(3)]
    assert paid == pytest.approx([paid[0], 2 * paid[0], 3 * paid[0]]) and paid[0] > 1
    run.close()


# -- the same whatever the batch ------------------------------------------------------------------


class Patches:
    """A detector of one convolution in float64: every patch of 4 x 4 pixels is a candidate of each noun."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.network = torch.nn.Conv2d(3, 2, 4, stride=4, bias=False).double().requires_grad_(False)

    def prepare(self, nouns: Sequence[str]) -> Query:
        return Query(tuple(nouns))

    def detect(self, images: Tensor, queries: Sequence[Query]) -> Detections:
        kinds = max(len(query.nouns) for query in queries)
        logits = 8 * self.network(images.double() - 0.5)[:, :kinds].flatten(2)
        corners = [(x, y, x + 4, y + 4) for y in range(0, 16, 4) for x in range(0, 16, 4)]
        return Detections(logits, torch.tensor(corners).float().expand(len(images), -1, -1))


@pytest.fixture(scope="module")
def in_float64(tiny_sd: DiffusersAdapter) -> Iterator[tuple[DiffusersAdapter, Any]]:
    """A tiny pipeline and a critic in float64."""
    for module in tiny_sd.modules():
        module.double()
    card = replace(load_critic("pocket-detector-a").card, family="patches", min_confidence=0.9)
    yield tiny_sd, DetectionCritic(Patches(), card, ReadOut(0.5))
    for module in tiny_sd.modules():
        module.float()


def whole_run(adapter: Any, critic: Any, method: Method, batch: int, which: list[int]) -> list[Job]:
    """Jobs after a run in float64, those of these numbers alone."""
    texts = ["six cats", "two cats on grass", "seven red apples", "two cats and three dogs"]
    prompts = [parse_prompt(texts[i]) for i in which]
    plan = adapter.plan(2)
    with torch.no_grad():
        conditioning = adapter.encode([prompt.text for prompt in prompts], plan)

    def drawing(index: int) -> Callable[[int], Noise]:
        def draw(candidate: int) -> Noise:
            own = torch.Generator().manual_seed(100 * index + candidate)
            return Noise(adapter.noise([own], plan).latents.double())

        return draw

    jobs = []
    for row, (index, prompt) in enumerate(zip(which, prompts, strict=True)):
        queries = {"critic": critic.prepare([t.noun for t in prompt.targets])}
        jobs.append(Job(Request(row, prompt, row, queries, drawing(index), index, 24.0)))
    look = Evaluator(
        adapter,
        plan,
        critic,
        None,
        method,
        conditioning,
        prompts,
        PriceList(adapter, plan, {"critic": critic}),
    )
    for _ in Pool(look, Cost(), batch).run(jobs):
        pass
    return jobs


RUNS = {
    "noise": replace(find_method("noise"), policy=DrawThenImprove(draws=2, steps=3)),
    "reno": replace(find_method("reno"), policy=DrawThenImprove(draws=0, steps=4)),
    "initno": replace(find_method("initno"), policy=DrawThenImprove(draws=0, steps=4)),
    "edit": replace(find_method("edit"), policy=DrawThenEdit(draws=2, width=2)),
    "zeno": find_method("zeno"),
    "early": replace(find_method("edit"), early=EarlyLook(0.5, steps=2)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_depends_neither_on_the_batch_nor_on_its_neighbours(
    name: str, in_float64: tuple[DiffusersAdapter, Any]
) -> None:
    adapter, critic = in_float64
    together = whole_run(adapter, critic, RUNS[name], 4, [0, 1, 2, 3])
    for jobs in (
        whole_run(adapter, critic, RUNS[name], 3, [0, 1, 2, 3]),
        [whole_run(adapter, critic, RUNS[name], 1, [i])[0] for i in (2, 3)],
    ):
        for job, other in zip(jobs, together[-len(jobs) :], strict=True):
            assert len(job.records) == len(other.records) > 4
            for one, two in zip(job.records, other.records, strict=True):
                assert (one.move, one.base, one.step, one.changes) == (
                    two.move,
                    two.base,
                    two.step,
                    two.changes,
                )
                assert (one.counts, one.moved) == (two.counts, two.moved)
                assert (one.early, one.abandoned) == (two.early, two.abandoned)
                assert [n.kept for n in one.nouns] == [n.kept for n in two.nouns]
                assert one.pre == pytest.approx(two.pre, rel=1e-12)
                # The critic's read-out is float32, which rounds what is equal in float64.
                assert one.loss == pytest.approx(two.loss, rel=1e-6)
                assert one.norm == pytest.approx(two.norm, rel=1e-8)
                assert one.drift == pytest.approx(two.drift, rel=1e-6, abs=1e-8)
            assert job.best is not None and other.best is not None
            torch.testing.assert_close(
                job.best.noise.latents, other.best.noise.latents, rtol=1e-8, atol=1e-8
            )
            assert job.best.noise.latents.dtype == torch.float64


def test_one_steps_loss_and_gradient_in_float32(pocket: CountGuidedPipeline) -> None:
    method = replace(find_method("noise"), policy=DrawThenImprove(draws=0, steps=1, candidates=1))
    prompts = ["five dogs and two cats", "seven balls", "twelve stars"]
    options: dict[str, Any] = {"guidance": method, "seed": 1, "budget": 6}
    together = pocket(prompts, **options)
    for row, history in enumerate(together.history):
        (alone,) = pocket(prompts[row], **options).history
        assert history[0].gradient and history[0].grad_norm > 0
        assert history[0].loss == pytest.approx(alone[0].loss, rel=1e-4)
        assert history[0].grad_norm == pytest.approx(alone[0].grad_norm, rel=1e-3)


def test_a_waiting_job_takes_the_slot_of_a_finished_one(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream(["grass", "two stars", "snow"], guidance="none", batch_size=2)
    states = list(run)
    assert [len(state.jobs) for state in states] == [2, 1]
    assert [job.index for state in states for job in state.finished] == [0, 1, 2]
    assert [state.step for state in states] == [0, 1]


def test_every_job_is_told_of_once_with_its_last_look(pocket: CountGuidedPipeline) -> None:
    prompts = ["two stars", "seventeen dogs and three cats"]
    states = list(pocket.stream(prompts, guidance="best-of-n", budget=4, num_images_per_prompt=2))
    told = [job.index for state in states for job in state.finished]
    assert sorted(told) == [0, 1, 2, 3]
    for state in states:
        for job in state.finished:
            assert job.outcome in OUTCOMES and job in state.jobs
            assert state.records[state.jobs.index(job)] in job.records


def test_the_fullest_kind_of_work_comes_first(pocket: CountGuidedPipeline) -> None:
    @dataclass(frozen=True)
    class Mixed:
        moves: frozenset[str] = frozenset({"draw", "improve"})

        def __call__(self, view: View) -> Answer:
            if len(view.records) == 1:
                return Stop("budget spent")
            return (Draw(gradient=view.wanted == (1,)),)

    method = replace(find_method("noise"), policy=Mixed())
    prompts = ["one star", "two stars", "three stars", "four stars"]
    states = list(pocket.stream(prompts, guidance=method))
    assert [[job.index for job in state.jobs] for state in states] == [[1, 2, 3], [0]]


def test_no_slot_is_empty_while_a_picture_waits(pocket: CountGuidedPipeline) -> None:
    @dataclass(frozen=True)
    class Alternating:
        """A plain look, one with gradient, and so on, twice as many for every second prompt."""

        moves: frozenset[str] = frozenset({"draw", "improve"})

        def __call__(self, view: View) -> Answer:
            if len(view.records) == 2 + 2 * (view.wanted[0] % 2):
                return Stop("budget spent")
            return (Draw(gradient=len(view.records) % 2 == 1),)

    method = replace(find_method("noise"), policy=Alternating())
    begun: list[int] = []

    def jobs(run: Any) -> Iterator[Job]:
        for job in run.jobs:
            begun.append(job.index)
            yield job

    run = pocket.stream([f"{n} stars" for n in range(5, 14)], guidance=method, batch_size=3)
    pool = run._start(Cost())
    for state in pool.run(jobs(run)):
        under_way = [job for job in run.jobs if job.index in begun and not job.outcome]
        assert len(under_way) + len(state.finished) < 2 * 3
        if len(begun) < len(run.jobs):
            assert len(state.jobs) == 3, "a slot stayed empty"
    assert all(job.outcome for job in run.jobs)
    assert all(gradient in pool.steps and pool.steps[gradient][0] for gradient in (True, False))


# -- memory ---------------------------------------------------------------------------------------


def once(inner: Any, images: Tensor, queries: Any, calls: int) -> CountEstimate:
    """Out of memory at the second call; the first one is the measurement of the price."""
    if calls == 2:
        raise torch.OutOfMemoryError("too much")
    found: CountEstimate = inner(images, queries)
    return found


def same(found: CountPipelineOutput, expected: CountPipelineOutput) -> None:
    assert found.outcomes == expected.outcomes
    for one, two in zip(found.history, expected.history, strict=True):
        assert [r.number for r in one] == [r.number for r in two] == list(range(len(one)))
        assert [(r.move, r.counts, r.verifier) for r in one] == [
            (r.move, r.counts, r.verifier) for r in two
        ]
        assert one[-1].pre == pytest.approx(two[-1].pre)
    assert found.cost.pre == pytest.approx(expected.cost.pre)
    assert found.cost.forwards == expected.cost.forwards


OPTIONS: dict[str, Any] = {"num_images_per_prompt": 3, "seed": 2, "budget": 3}


@pytest.mark.parametrize("role", ["critic", "verifier"])
def test_out_of_memory_in_a_counter_charges_and_tells_once(
    role: str, pocket: CountGuidedPipeline
) -> None:
    expected = pocket("two stars", guidance="best-of-n", **OPTIONS)
    assert expected.cost.forwards["verifier"] > 0
    counter = Counter(getattr(pocket, role), count=once)
    found = parts(pocket, "best-of-n", **{role: counter})("two stars", **OPTIONS)
    assert counter.calls > 2
    same(found, expected)


def test_out_of_memory_in_the_generator_halves_the_batch(pocket: CountGuidedPipeline) -> None:
    expected = pocket("two stars", guidance="best-of-n", **OPTIONS)
    sizes = []

    def render(noise: Noise, *others: Any) -> Tensor:
        sizes.append(len(noise))
        if len(noise) > 1:
            raise torch.OutOfMemoryError("too much")
        return pocket.adapter.render(noise, *others)

    adapter = Around(pocket.adapter, render=render, reduce_memory=lambda: None)
    found = parts(pocket, "best-of-n", adapter=adapter)("two stars", **OPTIONS)
    assert sizes[:2] == [3, 1] and max(sizes[1:]) == 1
    same(found, expected)


def test_a_more_sparing_plan_is_tried_before_the_batch_is_halved(
    pocket: CountGuidedPipeline,
) -> None:
    plans, sizes = ["balanced", "low"], []

    def render(noise: Noise, *others: Any) -> Tensor:
        sizes.append(len(noise))
        if plans:
            raise torch.OutOfMemoryError("too much")
        return pocket.adapter.render(noise, *others)

    adapter = Around(
        pocket.adapter, render=render, reduce_memory=lambda: plans.pop(0) if plans else None
    )
    found = parts(pocket, "best-of-n", adapter=adapter)("two stars", **OPTIONS)
    assert sizes[:3] == [3, 3, 3]
    same(found, pocket("two stars", guidance="best-of-n", **OPTIONS))


def test_a_picture_that_does_not_fit_alone_is_said_in_one_sentence(
    pocket: CountGuidedPipeline,
) -> None:
    def render(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    adapter = Around(pocket.adapter, render=render, reduce_memory=lambda: None)
    with pytest.raises(MemoryShortage, match=r"64 x 64.*memory=low"):
        parts(pocket, adapter=adapter)("two stars", num_images_per_prompt=2)


# -- faults stay with their picture ---------------------------------------------------------------


def test_a_picture_that_is_no_number_ends_its_own_job_and_is_never_verified(
    pocket: CountGuidedPipeline,
) -> None:
    query = pocket.adapter.encode(["two stars"], pocket.adapter.plan()).hidden
    asked: list[int] = []

    def render(noise: Noise, conditioning: Any, *others: Any) -> Tensor:
        images = pocket.adapter.render(noise, conditioning, *others).clone()
        bad = (conditioning.hidden == query).flatten(1).all(1)
        images[bad, :, 3:5, 7] = torch.nan
        return images

    def verify(inner: Any, images: Tensor, queries: Any, calls: int) -> CountEstimate:
        assert images.isfinite().all()
        asked.extend(q.nouns[0] == "star" for q in queries if calls > 1)
        found: CountEstimate = inner(images, queries)
        return found

    prompts = ["two stars", "three oranges", "two cats"]
    expected = pocket(prompts, guidance="best-of-n", budget=5, seed=1)
    broken = parts(
        pocket,
        "best-of-n",
        adapter=Around(pocket.adapter, render=render),
        verifier=Counter(pocket.verifier, count=verify),
    )
    found = broken(prompts, budget=5, seed=1)
    assert found.outcomes[0] == "non-finite picture" and not found.verified[0]
    assert not any(asked[1:]) and found.counts[0] == {}
    assert all(not r.finite and r.verifier is None for r in found.history[0])
    assert found.outcomes[1:] == expected.outcomes[1:]
    assert torch.isfinite(found.noise.latents).all()
    assert found.images[0].getpixel((7, 3)) == (0, 0, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_a_gradient_that_leads_nowhere_stays_with_its_picture(
    value: float, pocket: CountGuidedPipeline
) -> None:
    query = pocket.adapter.encode(["twelve dogs"], pocket.adapter.plan()).hidden

    def render(noise: Noise, conditioning: Any, *others: Any) -> Tensor:
        images = pocket.adapter.render(noise, conditioning, *others)
        bad = (conditioning.hidden == query).flatten(1).all(1)
        if images.requires_grad:
            poison = torch.where(bad, value, 1.0)[:, None, None, None]
            images.register_hook(lambda grad: grad * poison)
        return images

    policy = DrawThenImprove(draws=0, steps=2, candidates=2)
    broken = parts(
        pocket,
        replace(find_method("noise"), policy=policy),
        adapter=Around(pocket.adapter, render=render),
    )
    found = broken(["twelve dogs", "eleven cats and two dogs"], seed=2, budget=40)
    first, second = found.history
    assert found.outcomes[0] == ("non-finite gradient" if value else "budget spent")
    assert not found.verified[0]
    assert all(r.gradient and not r.moved and r.step == 0 for r in first) and len(first) == 2
    assert second[0].moved and second[1].step == 1
    assert torch.isfinite(found.noise.latents).all()


def raising(noun: str) -> Callable[..., CountEstimate]:
    def count(inner: Any, images: Tensor, queries: Sequence[Query], calls: int) -> CountEstimate:
        if any(noun in query.nouns for query in queries):
            raise RuntimeError(f"cannot bear {noun}")
        found: CountEstimate = inner(images, queries)
        return found

    return count


@pytest.mark.parametrize("role", ["critic", "verifier"])
def test_a_counter_that_fails_on_one_picture_fails_that_one_alone(
    role: str, pocket: CountGuidedPipeline
) -> None:
    prompts = ["two cats", "two stars", "three oranges"]
    expected = pocket(prompts, guidance="best-of-n", budget=4, seed=1)
    broken = parts(
        pocket, "best-of-n", **{role: Counter(getattr(pocket, role), count=raising("cat"))}
    )
    run = broken.stream(prompts, budget=4, seed=1)
    list(run)
    assert [job.outcome for job in run.jobs] == ["failed", *expected.outcomes[1:]]
    assert "cannot bear cat" in str(run.jobs[0].error)
    assert all(job.error is None for job in run.jobs[1:])
    assert run.output().jobs[-2:] == run.jobs[1:]
    alone = broken.stream(prompts[0], budget=4, seed=1)
    list(alone)
    with pytest.raises(RuntimeError, match="cannot bear cat"):
        alone.output()


@dataclass(frozen=True)
class Scripted:
    """One plain draw, then what it is told for the prompts that want these counts."""

    then: Any
    wanted: tuple[int, ...] = (2,)
    moves: frozenset[str] = frozenset({"draw", "edit", "improve"})

    def __call__(self, view: View) -> Answer:
        if not view.records:
            return (Draw(),)
        if view.wanted == self.wanted and len(view.records) == 1:
            found: Answer = self.then() if callable(self.then) else self.then
            return found
        return Stop("budget spent")


def boom() -> Answer:
    raise ZeroDivisionError("a policy's own mistake")


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (boom, "a policy's own mistake"),
        ((), "asks for nothing"),
        ((Edit(7, ()),), "record 7.*there are 1"),
        ((Improve(0, last=True),), "no climb goes on from record 0"),
        ((Edit(0, (Change("redraw", candidate=99),)),), "candidate 99"),
        ((Draw(), Draw(gradient=True)), "with and without gradient"),
        (Stop("happy"), "'happy' is no outcome"),
        (("draw",), "asks for 'draw', which is no Draw"),
        ((None,), "asks for None, which is no Draw"),
        (7, "asks for 7, not for several"),
        (Draw(), "asks for Draw.*not for several"),
    ],
)
def test_a_policy_that_asks_for_what_cannot_be_done_fails_its_own_picture(
    then: Any, message: str, pocket: CountGuidedPipeline
) -> None:
    method = replace(find_method("engine"), policy=Scripted(then, (1, 19)))
    run = pocket.stream(
        ["twenty dogs", "eight cats"], targets=[NEVER, [("cat", 8)]], guidance=method, seed=1
    )
    list(run)
    bad, good = run.jobs
    assert bad.outcome == "failed" and good.outcome != "failed" and good.error is None
    with pytest.raises(type(bad.error) if bad.error else ValueError, match=message):
        raise bad.error or ValueError
    # The picture that it had stays.
    assert bad.best is not None and len(run.output().images) == 2


def test_a_move_that_was_not_declared_is_refused(pocket: CountGuidedPipeline) -> None:
    policy = Scripted((Edit(0, ()),), (1, 19), frozenset({"draw"}))
    method = replace(find_method("best-of-n"), policy=policy)
    run = pocket.stream("twenty dogs", targets=NEVER, guidance=method)
    list(run)
    assert "did not say" in str(run.jobs[0].error)


def test_what_is_kept_holds_no_memory_of_its_batch(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream("two stars", num_images_per_prompt=4, guidance="best-of-n", budget=2)
    next(run)
    for job in run.jobs:
        assert job.best is not None
        for seen in (job.best, *job.observations.values()):
            for tensor in (seen.image, seen.noise.latents):
                assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert all(seen.image.numel() == 0 for seen in job.observations.values())
    run.close()
