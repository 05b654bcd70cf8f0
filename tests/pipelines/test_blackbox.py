"""The black box on tiny random pipelines of real classes, and on functions: what it promises and refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_contract import PROMPTS, generators
from tiny_boxes import MADE, SIZED, drawn, ready, stable_diffusion
from torch import Tensor

from countgen.errors import UsageError
from countgen.pipeline import CountGuidedPipeline
from countgen.pocket import load_critic
from pipelines.base import ImageSource, PipelineAdapter
from pipelines.blackbox import BlackBox
from pipelines.calls import view_of
from pipelines.draws import layout_of
from pipelines.registry import wrap

NAMES = {"num_inference_steps": "steps"}


@pytest.fixture(scope="module")
def critic() -> Any:
    return load_critic("pocket-detector-a")


@pytest.fixture(scope="module")
def verifier() -> Any:
    return load_critic("pocket-density")


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest) -> tuple[str, Any, BlackBox, dict[str, Any]]:
    make, arguments = MADE[request.param]
    torch.manual_seed(0)
    pipeline = ready(make())
    return request.param, pipeline, BlackBox(pipeline, reason="it is tested"), arguments


def planned(box: ImageSource, arguments: dict[str, Any]) -> Any:
    return box.plan(**{NAMES.get(name, name): value for name, value in arguments.items()})


def state(pipeline: Any) -> str:
    """Whatever of a pipeline is no weight."""
    members = {k: v for k, v in vars(pipeline).items() if not isinstance(v, torch.nn.Module)}
    schedulers = [vars(v) for v in members.values() if hasattr(v, "set_timesteps")]
    return str({k: str(v) for k, v in members.items()}) + str(schedulers)


class TestEveryPipeline:
    """The contract."""

    def test_pictures_are_the_pipelines_own_and_nothing_of_it_changes(self, made: Any) -> None:
        name, pipeline, box, arguments = made
        rounding = 1e-3 if name == "Kandinsky 3" else 1e-4
        assert isinstance(box, ImageSource) and not isinstance(box, PipelineAdapter)
        before = state(pipeline)
        weights = [p.clone() for m in box.modules() for p in m.parameters() if not p.is_meta]
        plan = planned(box, arguments)
        assert plan.places
        noise = box.noise(generators(3, 4), plan)
        if name == "quantised":  # the scale of its activations is that of the whole batch
            rows = (box.images(noise.pick(row), [PROMPTS[row]], plan) for row in range(2))
            found = torch.cat(list(rows))
        else:
            found = box.images(noise, PROMPTS, plan)
        assert state(pipeline) == before
        after = [p for m in box.modules() for p in m.parameters() if not p.is_meta]
        assert all(map(torch.equal, weights, after))
        own = view_of(pipeline)
        texts = {k: [v] for k, v in arguments.items() if isinstance(v, str)}
        for row, seed in enumerate((3, 4)):
            expected = own(
                prompt=[PROMPTS[row]],
                generator=generators(seed),
                output_type="np",
                **(arguments | texts),
            ).images
            expected = torch.from_numpy(expected).movedim(-1, 1)
            assert found.shape[1:] == expected.shape[1:]
            torch.testing.assert_close(found[row], expected[0].float(), atol=rounding, rtol=0)

    def test_the_noise_decides_the_picture(self, made: Any) -> None:
        _, _, box, arguments = made
        plan = planned(box, arguments)
        noise = box.noise(generators(3, 4), plan)
        one = box.images(noise, [PROMPTS[0]] * 2, plan)
        assert (one[0] - one[1]).abs().mean() > 1e-3

    def test_draws_edits_and_verification_run(self, made: Any, critic: Any, verifier: Any) -> None:
        name, _, box, arguments = made
        pipeline = CountGuidedPipeline(box, critic, verifier)
        assert pipeline.guidance.name == "engine"
        options: dict[str, Any] = {"output_type": "pt", **arguments}
        # The critic costs several times as much as a tiny picture, and is paid for too.
        ((first,),) = pipeline("two cats", guidance="none", **options).history
        for method, moves in (("best-of-n", {"draw"}), ("edit", {"draw", "edit"})):
            budget = 7 * first.pre
            found = pipeline("two cats", guidance=method, budget=budget, **options)
            (history,) = found.history
            assert {record.move for record in history} == moves
            assert found.jobs[0].best.record.verifier is not None
            assert not found.cost.backwards and found.cost.forwards["pipeline"] == len(history)
            assert found.cost.priced_by == ("time" if name == "quantised" else "operations")
            plan = planned(box, arguments)
            again = box.images(found.noise, ["two cats"], plan)
            torch.testing.assert_close(again.cpu(), found.images, atol=1e-3, rtol=0)


def test_a_gradient_is_refused_with_the_methods_that_need_none(critic: Any) -> None:
    box = BlackBox(ready(stable_diffusion()))
    with pytest.raises(UsageError, match=r"noise looks into.*best-of-n, edit"):
        CountGuidedPipeline(box, critic, guidance="noise")


@pytest.mark.parametrize("name", ["offloaded", "quantised", "own call", "image to image"])
def test_wrap_says_why_it_takes_the_black_box(name: str) -> None:
    torch.manual_seed(0)
    source = wrap(ready(MADE[name][0]()))
    assert isinstance(source, BlackBox)
    expected = {
        "offloaded": "is offloaded",
        "quantised": "is quantised",
        "own call": "Brighter has a call of its own",
        "image to image": "its call takes image",
    }
    assert expected[name] in source.reason


@pytest.mark.parametrize(
    ("drawn", "kept", "places"),
    [
        ((4, 8, 16), (4, 8, 16), True),
        ((1, 4, 8, 16), (4, 8, 16), True),
        ((4, 1, 8, 16), (4, 8, 16), True),
        ((128, 64), (64, 8, 16), True),
        ((127, 64), (1, 1, 127 * 64), False),
        ((1280,), (1, 1, 1280), False),
        ((16, 8, 4), (16, 8, 4), False),
    ],
)
def test_places_are_told_by_the_shape(
    drawn: tuple[int, ...], kept: tuple[int, ...], places: bool
) -> None:
    layout = layout_of(drawn, 64, 128)
    assert layout.shape == kept and layout.places is places
    value = torch.randn(drawn)
    assert torch.equal(layout.given(layout.kept(value)[0]), value)


def test_latents_packed_two_by_two_are_understood() -> None:
    from diffusers import FluxPipeline

    box = BlackBox(ready(stable_diffusion()))
    plan = box.plan(2, height=32, width=48)
    latents = torch.randn(2, *plan.latent_shape)
    packed = FluxPipeline._pack_latents(latents, 2, *plan.latent_shape)
    assert torch.equal(box.unpacked(packed, plan), latents)
    with pytest.raises(ValueError, match="latents must have the shape"):
        box.unpacked(packed[:, 1:], plan)


def test_noise_without_places_is_drawn_again_by_the_engine(critic: Any) -> None:
    """The default serves every source; what edits alone can do is refused."""

    def draw(prompt: str, latents: Any, generator: torch.Generator) -> Tensor:
        noise = torch.randn(3 * 64 * 64 + 1, generator=generator)
        return noise[1:].view(1, 3, 64, 64).sigmoid()

    found = CountGuidedPipeline(draw, critic)("nine cats", budget=200)
    assert {record.move for record in found.history[0]} == {"draw"}
    assert len(found.history[0]) > 1
    with pytest.raises(UsageError, match=r"edit edits the noise .* take best-of-n"):
        CountGuidedPipeline(draw, critic, guidance="edit")("nine cats")


def function(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """A function that draws 16 x 16 noise from its generator."""

    def draw(prompt: str, latents: Tensor | None, generator: torch.Generator) -> Any:
        noise = torch.randn(1, 3, 16, 16, generator=generator)
        return change(noise.sigmoid())

    return draw


def refusal(source: Any, **options: Any) -> str:
    """The sentence with which a source or its first plan is refused."""
    with pytest.raises(ValueError) as error:
        wrap(source, **options).plan()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_functions_may_return_what_they_hold_pictures_in() -> None:
    def bytes_of(x: Tensor) -> Any:
        return (x[0].permute(1, 2, 0) * 255).byte().numpy()

    for change in (lambda x: x, lambda x: [x[0]], bytes_of, lambda x: SimpleNamespace(images=x)):
        box = wrap(function(change))
        assert isinstance(box, BlackBox)
        plan = box.plan()
        noise = box.noise(generators(1, 2), plan)
        found = box.images(noise, PROMPTS, plan)
        torch.testing.assert_close(found, noise.latents.sigmoid(), atol=1 / 255, rtol=0)


def test_a_function_can_be_given_its_latents() -> None:
    box = wrap(lambda prompt, latents, generator: latents.sigmoid(), latent_shape=(3, 16, 16))
    plan = box.plan()
    noise = box.noise(generators(1), plan)
    assert torch.equal(box.images(noise, ["x"], plan), noise.latents.sigmoid())


def test_what_is_no_picture_is_refused_in_a_sentence() -> None:
    assert "takes prompt, latents and generator by these names" in refusal(lambda p: p)
    assert "the class" in refusal(torch.nn.Linear)
    assert "values from" in refusal(function(lambda x: x * 2 - 1))
    assert "if these are latents" in refusal(function(lambda x: x.repeat(1, 2, 1, 1)[:, :4]))
    assert "returns str, and pictures" in refusal(function(lambda x: "a picture"))
    assert "2 pictures for 1 prompts" in refusal(function(lambda x: torch.cat([x, x])))
    assert "draws no noise" in refusal(lambda prompt, latents, generator: drawn())
    assert "ignores the latents" in refusal(
        lambda prompt, latents, generator: drawn(), latent_shape=(3, 16, 16)
    )
    assert "another picture from the same noise" in refusal(
        lambda prompt, latents, generator: (
            torch.randn(1, 3, 16, 16, generator=generator) * 0 + torch.rand(1, 3, 16, 16)
        )
    )
    assert "failed: no such colour" in refusal(function(lambda x: _raise("no such colour")))


def _raise(text: str) -> None:
    raise RuntimeError(text)


def test_a_call_is_checked_by_its_signature() -> None:
    box = BlackBox(ready(stable_diffusion()))
    with pytest.raises(ValueError, match="takes no negative_promt; did you mean negative_prompt"):
        box.plan(negative_promt="red")
    with pytest.raises(ValueError, match="is given to StableDiffusionPipeline by countgen"):
        box.plan(output_type="np")
    with pytest.raises(ValueError, match="needs colour"):
        wrap(lambda prompt, latents, generator, colour: None).plan()
    made = MADE["SDXL with ControlNet"][0]()
    with pytest.raises(ValueError, match=r"failed.*given no image"):
        BlackBox(ready(made)).plan(2, height=32, width=32)


def test_a_pipeline_for_videos_is_refused() -> None:
    class Video:
        components: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, prompt: str, num_frames: int = 4, generator: Any = None) -> Any: ...

    assert "makes videos" in refusal(Video())


def test_a_size_that_changes_is_told() -> None:
    sizes = iter([16, 16, 8])
    box = wrap(function(lambda x: x[..., : next(sizes)]))
    plan = box.plan()
    with pytest.raises(ValueError, match="returns pictures of 8 x 16, and returned 16 x 16"):
        box.images(box.noise(generators(1), plan), ["x"], plan)


def test_flagged_and_blank_pictures_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    flags = iter([False, False, True])
    flagging = wrap(
        function(lambda x: SimpleNamespace(images=x, nsfw_content_detected=[next(flags)]))
    )
    blanks = iter([1, 1, 0])
    blanking = wrap(function(lambda x: x * next(blanks)))
    for box in (flagging, blanking):
        plan = box.plan()
        assert box.images(box.noise(generators(1), plan), ["x"], plan).isnan().all()
    assert "withheld 1 pictures" in caplog.text


def test_one_picture_that_fails_leaves_the_others(critic: Any) -> None:
    calls = []

    def draw(prompt: str, latents: Any, generator: torch.Generator) -> Tensor:
        calls.append(prompt)
        noise = torch.randn(1, 3, 64, 64, generator=generator).sigmoid()
        if "dogs" in prompt:
            raise RuntimeError("no dogs")
        return noise

    pipeline = CountGuidedPipeline(draw, critic, guidance="none")
    run = pipeline.stream(["two cats", "two dogs"])
    list(run)
    assert [job.outcome == "failed" for job in run.jobs] == [False, True]
    assert "no dogs" in str(run.jobs[1].error)


def test_an_exchanged_scheduler_is_noticed() -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pipeline = ready(stable_diffusion())
    box = BlackBox(pipeline)
    assert box.noise(generators(1), planned(box, SIZED)).step_noise is None
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
        copy.deepcopy(pipeline.scheduler.config)
    )
    steps = box.noise(generators(1), planned(box, SIZED)).step_noise
    assert steps is not None and len(steps) == 2
