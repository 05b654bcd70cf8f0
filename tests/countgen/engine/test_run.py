"""Runs: nothing of them stays on the pipeline; threads, callbacks, cancelling, budgets, output."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from countgen import CountGuidedPipeline
from countgen.engine.job import OUTCOMES
from countgen.engine.policy import DrawThenImprove
from countgen.engine.pool import StepState
from countgen.engine.run import Run, counts_of, to_pil
from countgen.guidance.methods import find_method

NEVER = [("dog", 1), ("cat", 19)]
"""Never exact."""
CLIMB = replace(find_method("noise"), policy=DrawThenImprove(draws=1, steps=2, candidates=1))


def images(pipeline: CountGuidedPipeline, prompt: str, **options: Any) -> Tensor:
    return pipeline(prompt, output_type="pt", **options).images


def test_the_state_that_is_streamed_is_the_receivers_own(pocket: CountGuidedPipeline) -> None:
    expected = images(pocket, "two stars", guidance="none")
    run = pocket.stream("two stars", guidance="none")
    for state in run:
        assert state.images.shape == (1, 3, 64, 64) and state.loss.shape == (1,)
        for tensor in (state.images, state.soft, state.hard, state.loss):
            tensor.zero_()
    output = run.output("pt")
    assert torch.equal(output.images, expected) and output.counts[0]["critic"]["star"] > 0
    assert run.jobs[0].plain is not None and run.jobs[0].plain.image.any()


def test_a_call_inside_a_callback_gets_its_own_pictures(pocket: CountGuidedPipeline) -> None:
    alone = {p: images(pocket, p, guidance=CLIMB) for p in ("six dogs and two cats", "ten stars")}
    inner: list[Tensor] = []

    def callback(run: Run, state: StepState) -> None:
        if len(inner) < 2:
            inner.append(images(pocket, "ten stars", guidance=CLIMB))

    outer = pocket(
        "six dogs and two cats", guidance=CLIMB, output_type="pt", callback_on_move=callback
    )
    assert torch.equal(outer.images, alone["six dogs and two cats"])
    assert len(inner) == 2 and all(torch.equal(found, alone["ten stars"]) for found in inner)


def test_interleaved_streams_get_their_own_pictures(pocket: CountGuidedPipeline) -> None:
    prompts = ("six dogs and two cats", "ten stars")
    alone = [images(pocket, p, guidance=CLIMB) for p in prompts]
    runs = [pocket.stream(p, guidance=CLIMB) for p in prompts]
    going = list(runs)
    flags = [p.requires_grad for m in pocket.adapter.modules() for p in m.parameters()]
    while going:
        going = [run for run in going if next(run, None) is not None]
        now = [p.requires_grad for m in pocket.adapter.modules() for p in m.parameters()]
        assert now == flags, "between two looks the weights are not as the user left them"
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(run.output("pt").images, expected)


@pytest.mark.parametrize("shared", ["pipeline", "diffusers"])
def test_four_threads_get_their_own_pictures(shared: str, pocket: CountGuidedPipeline) -> None:
    """Of one pipeline, or of four around the same Diffusers pipeline."""
    prompts = ("six dogs", "ten stars", "four cups", "nine balls")
    pipelines = [pocket] * 4
    if shared == "diffusers":
        inner: Any = pocket.adapter
        pipelines = [
            CountGuidedPipeline(inner.pipeline, pocket.critic, pocket.verifier) for _ in prompts
        ]
    alone = [images(p, text, guidance=CLIMB) for p, text in zip(pipelines, prompts, strict=True)]
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        try:
            found[index] = images(pipelines[index], prompts[index], guidance=CLIMB)
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    for index, expected in enumerate(alone):
        assert isinstance(found[index], Tensor), found[index]
        assert torch.equal(found[index], expected)


def test_a_run_is_cancelled_from_a_callback(pocket: CountGuidedPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def stop(run: Run, state: StepState) -> None:
        seen.append((state.step, state.pre))
        assert state.images.shape[1:] == (3, 64, 64)
        if state.step == 1:
            run.cancel()

    found = pocket("twenty dogs", targets=NEVER, guidance="best-of-n", callback_on_move=stop)
    assert [step for step, _ in seen] == [0, 1] and 0 < seen[0][1] < seen[1][1]
    assert found.outcomes == ["cancelled"] and len(found.history[0]) == 2
    # What is kept is checked by the verifier all the same.
    assert set(found.counts[0]) == {"critic", "verifier"} and found.cost.forwards["verifier"] == 1


def test_what_was_never_looked_at_is_cancelled_too(pocket: CountGuidedPipeline) -> None:
    for stop in ("cancel", "close"):
        run = pocket.stream(["two cats", "three cups"], batch_size=1)
        getattr(run, stop)()
        assert not list(run) and run.output().images == []
        assert [job.outcome for job in run.jobs] == ["cancelled"] * 2
        run = pocket.stream(["two cats", "three cups"], batch_size=1)
        next(run)
        getattr(run, stop)()
        assert not list(run)
        assert run.jobs[1].outcome == "cancelled" and run.jobs[1].best is None


def test_a_run_is_cancelled_from_another_thread(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream("twenty dogs", targets=NEVER, guidance="best-of-n", budget=1e6)
    started = threading.Event()

    def cancel() -> None:
        started.wait(60)
        run.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    for state in run:
        started.set()
        assert state.step < 10_000
    other.join()
    assert run.output().outcomes == ["cancelled"]
    assert next(run, None) is None


def test_closing_a_run_keeps_what_there_is(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream(["ten dogs and ten cats", "twenty fish"], budget=60)
    next(run)
    run.close()
    found = run.output()
    assert len(found.outcomes) == 2 and set(found.outcomes) <= {"cancelled", "exact"}
    assert len(found.images) == len(found.outcomes) == len(found.noise)
    assert found.cost.seconds > 0


def test_a_run_that_was_never_begun_has_nothing(pocket: CountGuidedPipeline) -> None:
    for stop in ("cancel", "close"):
        run = pocket.stream("two stars")
        getattr(run, stop)()
        assert next(run, None) is None
        found = run.output()
        assert found.images == [] and found.outcomes == [] and found.history == []


def test_a_budget_of_0_gives_the_plain_picture(pocket: CountGuidedPipeline) -> None:
    plain = pocket("six red apples", guidance="none", output_type="pt", seed=4)
    for method in ("noise", "engine", "reno", "trs"):
        found = pocket("six red apples", guidance=method, budget=0, output_type="pt", seed=4)
        assert torch.equal(found.images, plain.images), method
        assert len(found.history[0]) == 1 and found.outcomes == plain.outcomes


@pytest.mark.parametrize("method", ["best-of-n", "noise", "engine", "count-token", "zeno"])
@pytest.mark.parametrize("budget", [0.5, 5.0])
def test_the_budget_is_kept_by_every_picture(
    pocket: CountGuidedPipeline, method: str, budget: float
) -> None:
    found = pocket("twenty dogs", targets=NEVER, guidance=method, budget=budget, seed=1)
    assert found.outcomes == ["budget spent"] and not any(found.verified)
    (job,) = found.jobs
    first_draw_and_check = job.records[0].pre + 0.5
    assert job.spent <= max(budget, first_draw_and_check)
    assert budget < 1 or job.spent > budget - 3.5
    assert job.spent == pytest.approx(job.records[-1].pre, abs=0.3), (
        "only the last check comes after the last look"
    )


def test_a_budget_in_seconds_ends_after_the_look_that_was_under_way(
    pocket: CountGuidedPipeline,
) -> None:
    found = pocket("twenty dogs", targets=NEVER, guidance="best-of-n", seconds=0.0)
    assert found.outcomes == ["budget spent"] and len(found.history[0]) == 1


def test_the_cost_is_the_sum_of_what_the_pictures_and_their_texts_cost(
    pocket: CountGuidedPipeline,
) -> None:
    prompts = ["twenty dogs", "two stars", "three oranges and a cat"]
    for method in ("best-of-n", "count-token", "prompt-steering-feedback"):
        found = pocket(prompts, guidance=method, budget=4, num_images_per_prompt=2)
        text = found.cost.pre - sum(job.spent for job in found.jobs)
        flops = pocket.adapter.flops(pocket.adapter.plan())
        unit = 8 * flops["denoiser"].forward + flops["decoder"].forward
        assert text == pytest.approx(3 * flops["text_encoder"].forward / unit, rel=1e-6)
        assert all(job.spent >= job.records[-1].pre for job in found.jobs)


def test_outputs_come_as_they_are_asked_for(pocket: CountGuidedPipeline) -> None:
    options: dict[str, Any] = {"guidance": "none", "num_images_per_prompt": 2}
    pil, pt, array = (
        pocket("two stars", output_type=kind, **options).images for kind in ("pil", "pt", "np")
    )
    assert [image.size for image in pil] == [(64, 64)] * 2 and isinstance(pil[0], Image.Image)
    assert pt.shape == (2, 3, 64, 64) and array.shape == (2, 64, 64, 3)
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    pixels = torch.from_numpy(np.asarray(pil[1]).copy()).permute(2, 0, 1)
    assert (pixels / 255 - pt[1]).abs().max() <= 0.5 / 255 + 1e-6


def test_what_is_no_number_is_black() -> None:
    picture = torch.tensor([float("nan"), 2.0, -1.0, 0.5])[:, None].expand(3, 4, 1)[:, :, :1]
    assert [to_pil(picture).getpixel((0, y))[0] for y in range(4)] == [0, 255, 0, 128]


def test_a_prompt_without_a_count_is_drawn_once(pocket: CountGuidedPipeline) -> None:
    found = pocket(["cats on grass", "two stars"], output_type="np", budget=3)
    assert found.outcomes[0] == "no count in the prompt" and not found.verified[0]
    assert found.images.shape == (2, 64, 64, 3) and len(found.history[0]) == 1
    assert set(found.outcomes) <= set(OUTCOMES) and found.counts[0] == {"critic": {}}
    assert counts_of(found.jobs[1])["critic"].keys() == {"star"}


def test_tokens_come_with_the_output(pocket: CountGuidedPipeline) -> None:
    method = replace(
        find_method("count-token"), policy=DrawThenImprove(draws=0, steps=2, candidates=1)
    )
    found = pocket("twenty dogs", targets=NEVER, guidance=method, num_images_per_prompt=2)
    assert [rows and rows["token.0"].shape[:2] for rows in found.rows] == [(1, 1), (1, 1)]
    assert pocket("two stars", guidance="none").rows == [None]
