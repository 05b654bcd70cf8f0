"""What a guided step of each preset costs above the bare forward and backward of the same modules.

python -m benchmarks.guided_step --json
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from countgen.engine.cost import Cost, PriceList, peak_bytes
from countgen.engine.evaluate import Evaluator
from countgen.engine.job import Job, Request
from countgen.engine.policy import DrawThenImprove
from countgen.engine.pool import Pool
from countgen.engine.sharing import frozen
from countgen.guidance.methods import METHODS, Method, find_method
from countgen.guidance.variables import (
    CountToken,
    DirectNoise,
    LatentModifier,
    MeanLogVariance,
)
from countgen.pipeline import CountGuidedPipeline
from countgen.prompts import parse_prompt
from critics.detectors.base import DetectionCritic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Noise, Plan
from pipelines.tokens import text_encoders

PROMPT = "twenty apples"
TARGETS = (("red apple", 20), ("green apple", 19))
"""Never exact, so that no picture leaves the batch while it is timed."""


def guided(
    pipeline: CountGuidedPipeline, batch: int, plan: Plan, method: Method
) -> Callable[[], Any]:
    """One step of the pool on ``batch`` pictures, everything that a run does included."""
    adapter = pipeline.adapter
    if method.guide is None:
        method = replace(method, policy=DrawThenImprove(draws=0, steps=10**9))
    assert pipeline.verifier is not None
    prompt = parse_prompt(PROMPT, TARGETS)
    nouns = [target.noun for target in prompt.targets]
    roles = {"critic": pipeline.critic, "verifier": pipeline.verifier}
    queries = {role: critic.prepare(nouns) for role, critic in roles.items()}
    look = Evaluator(
        adapter,
        plan,
        pipeline.critic,
        pipeline.verifier,
        method,
        adapter.encode([PROMPT], plan),
        [prompt],
        PriceList(adapter, plan, roles),
    )

    def draw(candidate: int) -> Noise:
        return adapter.noise([torch.Generator().manual_seed(candidate)], plan)

    jobs = [Job(Request(i, prompt, 0, queries, draw, i, 1e12)) for i in range(batch)]
    states = Pool(look, Cost(), batch).run(jobs)
    return lambda: next(states)


class Bare:
    """The bare modules of the pocket generator and its critic, for a batch of one prompt."""

    def __init__(self, pipeline: CountGuidedPipeline, batch: int, plan: Plan) -> None:
        assert isinstance(pipeline.adapter, DiffusersAdapter)
        assert isinstance(pipeline.critic, DetectionCritic)
        self.adapter, self.critic, self.plan = pipeline.adapter, pipeline.critic, plan
        self.batch, self.random = batch, torch.Generator().manual_seed(0)
        self.text = self.adapter.encode([PROMPT] * batch, plan)
        self.times = torch.linspace(999, 1, plan.steps)
        side = (plan.height, plan.width, 0, 0, plan.height, plan.width)
        self.time_ids = self.text.pooled.new_tensor(side).expand(batch, 6)

    def noise(self) -> Tensor:
        return torch.randn(self.batch, *self.plan.latent_shape, generator=self.random)

    def velocity(
        self, latents: Tensor, now: Tensor, hidden: Tensor | None, pooled: Tensor | None
    ) -> Tensor:
        hidden = self.text.hidden if hidden is None else hidden
        pooled = self.text.pooled if pooled is None else pooled
        added = {"text_embeds": pooled, "time_ids": self.time_ids}
        unet = self.adapter.pipeline.unet
        found: Tensor = unet(latents, now, hidden, added_cond_kwargs=added).sample
        return found

    def counted(self, latents: Tensor) -> Tensor:
        """Decoder, and the critic's network."""
        images = self.adapter.pipeline.vae.decode(latents).sample / 2 + 0.5
        logits: Tensor = self.critic.network(images)[0]
        return logits.sum()

    def through(
        self, latents: Tensor, hidden: Tensor | None = None, pooled: Tensor | None = None
    ) -> Tensor:
        """The denoiser at every step with an Euler update, the decoder and the critic's network."""
        for now in self.times:
            latents = latents - self.velocity(latents, now, hidden, pooled) / self.plan.steps
        return self.counted(latents)

    def of_noise(self) -> None:
        leaf = self.noise().requires_grad_()
        torch.autograd.grad(self.through(leaf), leaf)

    def of_mean_and_variance(self) -> None:
        mean, spread = (torch.zeros_like(self.noise()).requires_grad_() for _ in range(2))
        made = self.noise() * (spread / 2).exp() + mean
        torch.autograd.grad(self.through(made), (mean, spread))

    def of_modifier(self) -> None:
        """A network of three layers for every picture."""
        noise = self.noise()
        entries, hidden = noise[0].numel(), LatentModifier().hidden
        sizes = ((entries, hidden), (hidden, hidden), (hidden, entries))
        weights = [torch.zeros(self.batch, *size).requires_grad_() for size in sizes]
        state = noise.flatten(1)[:, None]
        for weight in weights[:-1]:
            state = torch.nn.functional.silu(state @ weight)
        made = noise + (state @ weights[-1])[:, 0].reshape(noise.shape)
        torch.autograd.grad(self.through(made), weights)

    def of_token(self) -> None:
        """The text encoder with one more row of embeddings, to which the gradient leads."""
        pipe = self.adapter.pipeline
        ((tokenizer, encoder),) = text_encoders(pipe)
        network = getattr(pipe, encoder)
        table = network.get_input_embeddings()
        ids = getattr(pipe, tokenizer)(
            [PROMPT] * self.batch,
            padding="max_length",
            max_length=self.text.hidden.shape[1],
            return_tensors="pt",
        ).input_ids
        leaf = torch.zeros(self.batch, 1, table.weight.shape[1]).requires_grad_()

        def give(module: Any, args: Any, output: Tensor) -> Tensor:
            return torch.cat([output[:, :1], leaf, output[:, 2:]], 1)

        hook = table.register_forward_hook(give)
        try:
            found = network(ids, output_hidden_states=True)
        finally:
            hook.remove()
        loss = self.through(self.noise(), found.hidden_states[-2], found[0])
        torch.autograd.grad(loss, leaf)

    def of_guided_steps(self) -> None:
        """Every step forward, decoded, counted and back; then the decoder and the critic once more."""
        latents = self.noise()
        for now in self.times:
            leaf = latents.detach().requires_grad_()
            velocity = self.velocity(leaf, now, None, None)
            loss = self.counted(leaf - velocity * now / 1000)
            torch.autograd.grad(loss, leaf)
            latents = leaf.detach() - velocity.detach() / self.plan.steps
        with torch.no_grad():
            self.counted(latents)

    def step(self, method: Method) -> Callable[[], None]:
        """What a method's step runs, and nothing else."""
        if method.guide is not None:
            return self.of_guided_steps
        steps: dict[type, Callable[[], None]] = {
            DirectNoise: self.of_noise,
            MeanLogVariance: self.of_mean_and_variance,
            LatentModifier: self.of_modifier,
            CountToken: self.of_token,
        }
        return steps[type(method.variable)]


def compare(
    pipeline: CountGuidedPipeline, batch: int, repeats: int, method: Method
) -> dict[str, float]:
    """Both sides in turn, so that the machine's moods fall on both; medians of times and of ratios.

    Seconds are of the processor, so that other programs count for less.
    """
    plan = pipeline.adapter.plan()
    sides = (
        guided(pipeline, batch, plan, method),
        Bare(pipeline, batch, plan).step(method),
    )
    for side in sides:
        side()
    times: list[tuple[float, float]] = []
    for turn in range(repeats):
        pair = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            begun = time.process_time()
            sides[which]()
            pair[which] = time.process_time() - begun
        times.append((pair[0], pair[1]))
    ratios = [a / b for a, b in times]
    return {
        "ratio_to_floor": round(stats.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "seconds": round(stats.median(a for a, _ in times), 4),
        "floor_seconds": round(stats.median(b for _, b in times), 4),
    }


def with_gradient() -> list[str]:
    """Presets that take gradients."""
    return [name for name, method in METHODS.items() if method.gradient]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each side")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--methods", nargs="+", default=list(with_gradient()))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket", guidance=find_method("noise"))
    widest = max(options.batches)
    with frozen(pipeline.adapter.modules()):
        by_batch = {
            b: compare(pipeline, b, options.repeats, find_method("noise")) for b in options.batches
        }
        by_method = {
            name: compare(pipeline, widest, options.repeats, find_method(name))
            for name in options.methods
        }
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.guided_step --json --repeats {options.repeats} --batches "
        f"{' '.join(map(str, options.batches))}",
        "device": str(pipeline.adapter.device),
        "threads": torch.get_num_threads(),
        "ratio_to_floor": by_batch[widest]["ratio_to_floor"],
        "seconds": by_batch[widest]["seconds"],
        "peak_bytes": peak_bytes(pipeline.adapter.device),
        "by_batch": by_batch,
        "by_method": by_method,
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
