"""What every adapter promises, on a tiny random pipeline of the real classes; subclassed once a pipeline.

A subclass has a class- or module-scoped fixture ``adapter`` (see ``loaded``), made from a folder in the hub's
layout with a card that fits its size.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen.engine.policy import DrawThenImprove
from countgen.engine.sharing import frozen
from countgen.guidance.methods import find_method
from countgen.guidance.optimizers import Polyak
from countgen.pipeline import CountGuidedPipeline
from countgen.pocket import load_critic
from pipelines import memory
from pipelines.adapter import DiffusersAdapter
from pipelines.base import (
    Conditioning,
    DenoiseStep,
    Noise,
    PipelineAdapter,
    Plan,
    TrajectoryStep,
)
from pipelines.tokens import text_encoders, widths

PROMPTS = ["two cats on grass", "seven red apples"]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def in_memory(adapter: DiffusersAdapter, name: str) -> Iterator[None]:
    """The adapter with another memory plan for a while."""
    before = adapter.memory.name
    adapter.set_memory_plan(name)
    try:
        yield
    finally:
        adapter.set_memory_plan(before)


@contextmanager
def in_dtype(adapter: DiffusersAdapter, dtype: torch.dtype) -> Iterator[None]:
    """The adapter's modules in another precision for a while."""
    for module in adapter.modules():
        module.to(dtype)
    try:
        yield
    finally:
        for module in adapter.modules():
            module.to(torch.float32)


def saved_bytes(adapter: DiffusersAdapter, call: Any) -> tuple[Any, int]:
    """What a call returns, and the bytes that its graph keeps for the backward pass, weights aside."""
    with memory.GraphBytes(adapter.modules()) as kept:
        result = call()
    return result, kept.total


def leaves(encoded: Conditioning) -> tuple[Conditioning, list[Tensor]]:
    """The same conditioning, with gradient to what it is made of."""
    hidden = encoded.hidden.detach().clone().requires_grad_()
    if encoded.pooled is None:
        return replace(encoded, hidden=hidden), [hidden]
    pooled = encoded.pooled.detach().clone().requires_grad_()
    return replace(encoded, hidden=hidden, pooled=pooled), [hidden, pooled]


class AdapterContract:
    """Holds for every adapter."""

    steps: Sequence[int] = (1, 2, 4)
    """Steps that the model can take."""
    arguments: dict[str, Any] = {}  # noqa: RUF012
    """What the wrapped pipeline must be told besides, to do what the adapter does."""
    nudge: float = 1e-2
    """Length of the finite difference in noise."""

    def reference(self, adapter: DiffusersAdapter, plan: Plan, seeds: Sequence[int]) -> Tensor:
        """What the wrapped pipeline itself returns."""
        return adapter.pipeline(
            list(PROMPTS),  # some pipelines write into it
            height=plan.height,
            width=plan.width,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance_scale,
            generator=generators(*seeds),
            output_type="pt",
            **self.arguments,
        ).images

    def rendered(
        self, adapter: DiffusersAdapter, noise: Noise, prompts: Sequence[str], plan: Plan
    ) -> Tensor:
        return adapter.render(noise, adapter.encode(prompts, plan), plan)

    def test_it_is_an_adapter(self, adapter: DiffusersAdapter) -> None:
        assert isinstance(adapter, PipelineAdapter)

    def test_render_equals_the_wrapped_pipeline(self, adapter: DiffusersAdapter) -> None:
        for steps in self.steps:
            plan = adapter.plan(steps)
            expected = self.reference(adapter, plan, (3, 4))
            with torch.no_grad():
                found = self.rendered(adapter, adapter.noise(generators(3, 4), plan), PROMPTS, plan)
            assert found.shape == (2, 3, plan.height, plan.width)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_another_aspect_ratio_equals_it_too(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan(self.steps[0], width=2 * adapter.card.size)
        expected = self.reference(adapter, plan, (3, 4))
        with torch.no_grad():
            found = self.rendered(adapter, adapter.noise(generators(3, 4), plan), PROMPTS, plan)
        assert found.shape[-1] == 2 * found.shape[-2]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_gradients_reach_noise_and_conditioning(self, adapter: DiffusersAdapter) -> None:
        for steps in self.steps:
            plan = adapter.plan(steps)
            noise = adapter.noise(generators(1, 2), plan)
            noise.latents.requires_grad_()
            encoded, parts = leaves(adapter.encode(PROMPTS, plan))
            images = adapter.render(noise, encoded, plan)
            for grad in torch.autograd.grad(images.square().sum(), (noise.latents, *parts)):
                assert torch.isfinite(grad).all() and (grad.flatten(1).norm(dim=1) > 0).all()

    def test_the_gradient_is_the_central_difference(self, adapter: DiffusersAdapter) -> None:
        """Against a central difference in float64."""
        with in_dtype(adapter, torch.float64):
            plan = adapter.plan(self.steps[-1])
            encoded = adapter.encode(PROMPTS[:1], plan)
            noise = adapter.noise(generators(5), plan)
            noise = Noise(
                noise.latents.double(),
                None if noise.step_noise is None else noise.step_noise.double(),
            )
            weight = torch.randn(1, 3, plan.height, plan.width, dtype=torch.float64)
            vae = adapter.pipeline.vae

            def value(x: Tensor) -> Tensor:
                *_, last = adapter.trajectory(replace(noise, latents=x), encoded, plan)
                # Before the clamp to [0, 1], whose gradient is zero at its ends.
                image = vae.decode(
                    adapter.family.denormalize_latents(vae, last.latents.double())
                ).sample
                return (image * weight).sum()

            leaf = noise.latents.clone().requires_grad_()
            (grad,) = torch.autograd.grad(value(leaf), leaf)
            # Along the gradient itself, where it is largest: diffusers' solvers round to float32 in between.
            direction = grad / grad.norm()
            with torch.no_grad():
                h = self.nudge
                difference = value(noise.latents + h * direction) - value(
                    noise.latents - h * direction
                )
            torch.testing.assert_close(
                (grad * direction).sum(), difference / (2 * h), rtol=1e-2, atol=0
            )

    def test_a_picture_does_not_depend_on_the_rest_of_its_batch(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan = adapter.plan(self.steps[-1])
        with torch.no_grad():
            both = adapter.noise(generators(1, 2), plan)
            own = adapter.noise(generators(2), plan)
            together = self.rendered(adapter, both, PROMPTS, plan)
            alone = self.rendered(adapter, own, PROMPTS[1:], plan)
        torch.testing.assert_close(together[1:], alone, atol=2e-5, rtol=0)

    def test_rows_of_a_conditioning_are_picked_and_joined(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan()
        with torch.no_grad():
            both = adapter.encode(PROMPTS, plan)
            apart = [adapter.encode([prompt], plan) for prompt in PROMPTS]
            swapped = Conditioning.join([apart[1], apart[0]])
            noise = adapter.noise(generators(1, 1), plan)
            expected = adapter.render(noise, both, plan)
            found = adapter.render(noise, swapped, plan)
            picked = adapter.render(noise, both.pick([1, 0]), plan)
        assert len(swapped) == 2
        torch.testing.assert_close(found, expected.flip(0), atol=2e-5, rtol=0)
        torch.testing.assert_close(picked, expected.flip(0), atol=2e-5, rtol=0)

    def test_the_trajectory_ends_in_its_own_prediction(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan(self.steps[-1])
        with torch.no_grad():
            noise = adapter.noise(generators(1), plan)
            steps = list(adapter.trajectory(noise, adapter.encode(PROMPTS[:1], plan), plan))
        assert [s.step for s in steps] == list(range(plan.steps))
        assert all(s.clean.shape == s.latents.shape == noise.latents.shape for s in steps)
        torch.testing.assert_close(steps[-1].latents, steps[-1].clean, atol=1e-4, rtol=1e-4)

    def test_around_that_changes_nothing_gives_the_same_bits(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan = adapter.plan(self.steps[-1])
        encoded, noise = adapter.encode(PROMPTS, plan), adapter.noise(generators(1, 2), plan)
        seen: list[tuple[int, Tensor]] = []

        def same(step: DenoiseStep) -> Tensor:
            prediction = step.denoise(step.latents)
            seen.append((step.index, step.predict_clean(prediction)))
            return prediction

        with torch.no_grad():
            plain = list(adapter.trajectory(noise, encoded, plan))
            found = list(adapter.trajectory(noise, encoded, plan, around=same))
        assert [index for index, _ in seen] == list(range(plan.evaluations))
        for (_, clean), one, other in zip(seen, plain, found, strict=True):
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(clean, other.clean)
            assert (other.evaluations, other.grad_evaluations) == (2, 0)

    def test_rows_that_are_dropped_leave_the_others_as_they_were(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan = adapter.plan(self.steps[-1])
        encoded, noise = adapter.encode(PROMPTS, plan), adapter.noise(generators(1, 2), plan)
        last = plan.evaluations - 1

        def swap_then_drop(step: TrajectoryStep) -> list[int] | None:
            return {0: [1, 0], last - 1: [0]}.get(step.step)

        with torch.no_grad():
            plain = list(adapter.trajectory(noise, encoded, plan))
            found = list(adapter.trajectory(noise, encoded, plan, keep=swap_then_drop))
            ended = list(adapter.trajectory(noise, encoded, plan, keep=lambda step: []))
        assert len(found) == len(plain) and len(ended) == 1
        assert found[-1].evaluations == len(found[-1].latents) == (1 if last else 2)
        if last:
            row = 0 if last == 1 else 1  # with two steps nothing was swapped
            torch.testing.assert_close(
                found[-1].latents[0], plain[-1].latents[row], atol=2e-5, rtol=1e-4
            )

    def test_around_steers_by_a_gradient_and_by_another_prompt(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan = adapter.plan(self.steps[-1])
        encoded, noise = adapter.encode(PROMPTS, plan), adapter.noise(generators(1, 2), plan)
        other = encoded.pick([1, 0])

        def steered(step: DenoiseStep) -> Tensor:
            with torch.enable_grad():
                leaf = step.latents.detach().requires_grad_()
                prediction = step.denoise(leaf)
                clean = step.predict_clean(prediction, leaf)
                (grad,) = torch.autograd.grad(clean.square().sum(), leaf)
            assert (grad.flatten(1).norm(dim=1) > 0).all()
            difference = step.denoise(step.latents, other) - prediction.detach()
            return prediction.detach() + difference

        with torch.no_grad():
            plain = list(adapter.trajectory(noise, encoded, plan))
            found = list(adapter.trajectory(noise, encoded, plan, around=steered))
            swapped = list(adapter.trajectory(noise, other, plan))
        assert not torch.equal(found[0].latents, plain[0].latents)
        # What the other prompt says is what a trajectory of that prompt does at its first step.
        torch.testing.assert_close(found[0].latents, swapped[0].latents, atol=1e-5, rtol=1e-4)
        assert all((step.evaluations, step.grad_evaluations) == (4, 2) for step in found)
        with pytest.raises(ValueError, match="as many rows of conditioning, not 1"):
            next(adapter.trajectory(noise, encoded.pick([0]), plan))
        with pytest.raises(ValueError, match="around must return a prediction of the shape"):
            next(adapter.trajectory(noise, encoded, plan, around=lambda step: step.latents[:1]))

    def test_the_gradient_of_the_last_steps_is_theirs(self, adapter: DiffusersAdapter) -> None:
        """Against a trajectory that is cut by hand before its last step."""
        plan = adapter.plan(self.steps[-1])
        for wrong in (0, plan.evaluations + 1):
            with pytest.raises(ValueError, match="grad_steps must lie between 1 and"):
                adapter.estimate_bytes(plan, grad_steps=wrong)
        noise = adapter.noise(generators(1, 2), plan)
        encoded, parts = leaves(adapter.encode(PROMPTS, plan))
        start: list[Tensor] = []

        def cut(step: DenoiseStep) -> Tensor:
            if step.index < plan.evaluations - 1:
                with torch.no_grad():
                    return step.denoise(step.latents)
            start.append(step.latents.detach().requires_grad_())
            return step.denoise(start[0])

        # Latents without graph come to the last step: what it makes of them, by hand.
        *_, last = adapter.trajectory(noise, encoded, plan, around=cut)
        expected = torch.autograd.grad(adapter.decode(last.latents).square().sum(), parts)
        leaf = noise.latents.clone().requires_grad_()
        images = adapter.render(replace(noise, latents=leaf), encoded, plan, grad_steps=1)
        own, *found = torch.autograd.grad(images.square().sum(), (leaf, *parts))
        with torch.no_grad():
            assert torch.equal(images, adapter.render(noise, encoded, plan))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        assert torch.isfinite(own).all() and (own.flatten(1).norm(dim=1) > 0).all()

    def test_memory_is_estimated(self, adapter: DiffusersAdapter) -> None:
        """What graphs of two pictures and of all steps, or one, really keep."""
        plan = adapter.plan(self.steps[-1])
        weights = memory.module_bytes(*adapter.modules())
        with frozen(adapter.modules()):
            encoded, noise = adapter.encode(PROMPTS, plan), adapter.noise(generators(1, 2), plan)
            leaf = noise.latents.clone().requires_grad_()
            for name in memory.NAMES:
                with in_memory(adapter, name):
                    for steps in (None, 1):
                        told = adapter.estimate_bytes(plan, 2, steps) - weights
                        _, kept = saved_bytes(
                            adapter,
                            lambda steps=steps: adapter.render(
                                replace(noise, latents=leaf), encoded, plan, steps
                            ),
                        )
                        assert 0.6 * kept < told < 2 * kept, (name, steps, told, kept)

    def test_modes_of_torch_change_nothing(self, adapter: DiffusersAdapter) -> None:
        """Inference mode, another default precision, and autocast around a forward pass alone."""
        plan = adapter.plan(self.steps[0])

        def drawn() -> tuple[Noise, Conditioning, Tensor]:
            noise, encoded = adapter.noise(generators(1), plan), adapter.encode(PROMPTS[:1], plan)
            with torch.no_grad():
                return noise, encoded, adapter.render(noise, encoded, plan)

        expected = drawn()
        with torch.inference_mode():
            inference = drawn()
            assert adapter.flops(plan)["denoiser"].backward > 0
        torch.set_default_dtype(torch.float64)
        try:
            wide = drawn()
        finally:
            torch.set_default_dtype(torch.float32)
        for noise, encoded, images in (inference, wide):
            assert noise.latents.dtype == images.dtype == torch.float32
            assert torch.equal(noise.latents, expected[0].latents)
            torch.testing.assert_close(images, expected[2], atol=1e-5, rtol=0)
            leaf = noise.latents.clone().requires_grad_()
            adapter.render(replace(noise, latents=leaf), encoded, plan).sum().backward()
            assert leaf.grad is not None and leaf.grad.abs().sum() > 0

    def test_it_can_be_pickled(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan(self.steps[0])
        other = pickle.loads(pickle.dumps(adapter))
        noise = adapter.noise(generators(1), plan)
        with torch.no_grad():
            one, two = (self.rendered(a, noise, PROMPTS[:1], plan) for a in (adapter, other))
        assert torch.equal(one, two)

    def test_the_wrapped_pipeline_is_left_as_it_was(self, adapter: DiffusersAdapter) -> None:
        def state() -> list[Any]:
            modules = [(name, m) for part in adapter.modules() for name, m in part.named_modules()]
            return [
                [p.requires_grad for part in adapter.modules() for p in part.parameters()],
                [
                    (name, m.training, getattr(m, "gradient_checkpointing", 0))
                    for name, m in modules
                ],
                [(len(m._forward_hooks), len(m._forward_pre_hooks)) for _, m in modules],
                dict(adapter.pipeline.config),
                [len(getattr(adapter.pipeline, t)) for t, _ in text_encoders(adapter.pipeline)],
                adapter.pipeline.scheduler.timesteps.tolist(),
            ]

        before, flags = self.weights(adapter), state()
        with frozen(adapter.modules()), in_memory(adapter, "low"):
            assert not any(p.requires_grad for m in adapter.modules() for p in m.parameters())
            plan = adapter.plan(self.steps[-1])
            noise = adapter.noise(generators(1), plan)
            noise.latents.requires_grad_()
            tokens = {"<count>": [torch.zeros(w) for w in widths(adapter.pipeline)]}
            encoded = adapter.encode(["two <count> cats"], plan, tokens)
            adapter.render(noise, encoded, plan).sum().backward()
        assert state() == flags
        after = self.weights(adapter)
        assert all(torch.equal(before[key], after[key]) for key in before)

    def weights(self, adapter: DiffusersAdapter) -> dict[str, Tensor]:
        return {
            f"{i} {key}": value.clone()
            for i, module in enumerate(adapter.modules())
            for key, value in module.state_dict().items()
        }

    def test_memory_plans_change_the_memory_alone(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan(self.steps[-1])
        encoded = adapter.encode(PROMPTS, plan)
        noise = adapter.noise(generators(1, 2), plan)
        found = {}
        with frozen(adapter.modules()):
            for name in memory.NAMES:
                leaf = noise.latents.clone().requires_grad_()
                with in_memory(adapter, name):
                    images, kept = saved_bytes(
                        adapter,
                        lambda leaf=leaf: adapter.render(
                            replace(noise, latents=leaf), encoded, plan
                        ),
                    )
                    (grad,) = torch.autograd.grad(images.square().sum(), leaf)
                found[name] = images, grad, kept
        images, grad, kept = found["fast"]
        for name in ("balanced", "low"):
            torch.testing.assert_close(found[name][0], images, atol=1e-5, rtol=0)
            torch.testing.assert_close(found[name][1], grad, atol=1e-5, rtol=1e-3)
            assert found[name][2] < kept
        assert found["low"][2] <= found["balanced"][2]

    def test_half_precision_keeps_noise_and_pictures_in_float32(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan = adapter.plan(self.steps[-1])
        noise = adapter.noise(generators(1), plan)
        noise.latents.requires_grad_()
        with torch.no_grad():
            exact = self.rendered(adapter, noise, PROMPTS[:1], plan)
        with in_dtype(adapter, torch.bfloat16):
            images = self.rendered(adapter, noise, PROMPTS[:1], plan)
            assert noise.latents.dtype == images.dtype == torch.float32
            (grad,) = torch.autograd.grad(images.square().sum(), noise.latents)
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0
        assert (images - exact).abs().mean() < 0.1

    def test_a_new_token_with_a_words_embedding_is_that_word(
        self, adapter: DiffusersAdapter
    ) -> None:
        plan, pipeline = adapter.plan(), adapter.pipeline
        word, tokens = "cats", []
        for tokenizer, encoder in text_encoders(pipeline):
            # As it stands inside a text: some tokenizers count the space before a word to it.
            ids = getattr(pipeline, tokenizer)(f" {word}", add_special_tokens=False).input_ids
            tokens.append(getattr(pipeline, encoder).get_input_embeddings().weight[ids].detach())
        # Else the word had no counterpart: a token has as many embeddings in each encoder.
        assert len({len(rows) for rows in tokens}) == 1
        tokens = [rows.clone().requires_grad_() for rows in tokens]
        expected = adapter.encode(["two cats"], plan)
        found = adapter.encode(["two <new>"], plan, {"<new>": tokens})
        torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-5, rtol=0)
        if expected.pooled is not None:
            torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)
        noise = adapter.noise(generators(1), plan)
        images = adapter.render(noise, found, plan)
        for grad in torch.autograd.grad(images.square().sum(), tokens):
            assert torch.isfinite(grad).all() and grad.abs().sum() > 0

    def test_embeddings_that_do_not_fit_are_refused(self, adapter: DiffusersAdapter) -> None:
        with pytest.raises(ValueError, match="as many embeddings"):
            adapter.encode(["<new>"], adapter.plan(), {"<new>": [torch.zeros(3)]})

    def test_operations_grow_with_the_picture(self, adapter: DiffusersAdapter) -> None:
        with frozen(adapter.modules()):
            small, large = adapter.plan(), adapter.plan(height=2 * adapter.card.size)
            one, two = adapter.flops(small), adapter.flops(large)
            with in_memory(adapter, "low"):
                again = adapter.flops(small)
        assert set(one) == {"text_encoder", "denoiser", "decoder"}
        assert again["decoder"].forward == one["decoder"].forward
        assert 0 < one["text_encoder"].backward < 3 * one["text_encoder"].forward
        assert again["decoder"].backward > 1.5 * one["decoder"].backward
        assert two["decoder"].forward == pytest.approx(2 * one["decoder"].forward, rel=0.2)
        # Frozen weights: the backward pass to the noise costs about one pass, not two, and less where much
        # is computed of the text alone.
        assert 0.1 < one["denoiser"].backward / one["denoiser"].forward < 1.7

    def test_impossible_plans_are_refused(self, adapter: DiffusersAdapter) -> None:
        for options, message in (
            ({"steps": 0}, "(between 1 and|takes no other).*, not 0"),
            ({"steps": 10**9}, f"(between 1 and|takes no other).*, not {10**9}"),
            ({"steps": 1.5}, "(whole number|takes no other number).* 1.5"),
            ({"height": adapter.card.size + 1}, "multiples of"),
            ({"height": float(adapter.card.size)}, "whole number"),
            ({"height": 0}, "multiples of|at least"),
            ({"height": 2**20, "width": 2**20}, "smaller height and width"),
            ({"guidance_scale": float("nan")}, "finite"),
        ):
            with pytest.raises(ValueError, match=message):
                adapter.plan(**options)

    def test_guidance_moves_the_count_of_a_trained_critic(self, adapter: DiffusersAdapter) -> None:
        """The whole loop: of one noise that is improved, the soft count comes nearer to what is asked for."""
        critic = load_critic("pocket-detector-a")
        # A random network moves less than a trained one, hence the long steps.
        method = replace(
            find_method("noise"),
            policy=DrawThenImprove(draws=0, steps=12, candidates=1),
            optimizer=Polyak(step_size=0.2),
        )
        pipeline = CountGuidedPipeline(adapter, critic, guidance=method)
        run = pipeline.stream("three red apples", budget=1e6, seed=1)
        gaps = [(float(state.soft[0, 0]) - 3) ** 2 for state in run]
        assert min(gaps) < 0.5 * gaps[0]
        assert run.jobs[0].records[0].gradient


__all__ = ["PROMPTS", "AdapterContract", "generators", "in_dtype", "in_memory", "saved_bytes"]
