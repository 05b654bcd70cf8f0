"""Amortised guidance: a network that changes a noise once, before drawing, as guidance would in many steps.

After noise hypernetworks (HyperNoise, arXiv 2508.09968): the generator's own denoiser with a LoRA reads the
noise and the prompt, and its output f is added to the noise. The base of its last layer is left out and the
LoRA begins as nothing, so that f begins at 0; 0.5 |f|^2 approximates the divergence from the noise's
distribution. It is learnt from a critic's gradient, as published, or (ours) from pictures that another method
has made exact: from their first noise to their last.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from countgen.engine.cost import flops_of
from countgen.engine.sharing import frozen
from countgen.errors import UsageError
from countgen.guidance.base import Start
from countgen.guidance.objectives import OBJECTIVES
from countgen.learning.adapting import ADAPTER, lora_layers, lora_targets
from countgen.learning.draws import Prompts, noise_of
from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.learning.lora import (
    bounded_rows,
    check_gradient,
    counting_loss,
    fresh_noise,
    unguided_plan,
)
from countgen.learning.screening import read_weights
from countgen.learning.settings import keep_settings
from countgen.prompts import CountPrompt
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Conditioning, Noise, PipelineAdapter, Plan
from pipelines.family import DenoiserCall

FORMAT = "countgen-noise-1"
_LAST = ("conv_out", "proj_out")


@dataclass(frozen=True)
class NoiseConfig:
    """How a noise network is trained.

    Attributes:
        rank: of the LoRAs.
        source: "critic": down the gradient of a counting loss, through all sampling steps; "successes":
            towards the changes that made other pictures exact.
        objective: counting loss, by its name in ``OBJECTIVES``.
        keep: weight of the squared change, its mean over a noise's entries; 0.5 as published.
        longest: largest gradient of one picture that comes back to its noise (``bounded_rows``).
    """

    train: TrainConfig
    rank: int = 16
    where: Literal["attention", "all"] = "attention"
    source: Literal["critic", "successes"] = "critic"
    objective: str = "hinge"
    keep: float = 0.5
    longest: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.keep < 0 or not self.longest > 0:
            raise UsageError("rank and bound must be positive, and the weight not negative")
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"there is no counting loss {self.objective!r}; there are {', '.join(OBJECTIVES)}"
            )


PRESETS = {
    # Rank, learning rate and weight as published, where SGD took the steps.
    "hypernoise": NoiseConfig(
        TrainConfig(steps=25_000, batch=4, learning_rate=1e-3, warmup=0, ema=0.0), rank=128
    ),
    "pocket": NoiseConfig(
        TrainConfig(steps=200, batch=8, learning_rate=2e-3, warmup=10, ema=0.97), where="all"
    ),
}


class NoiseNetwork(nn.Module):
    """A generator's denoiser with a LoRA, whose last layer is the LoRA alone; its weights are shared."""

    def __init__(self, adapter: DiffusersAdapter, rank: int, where: str, seed: int = 0) -> None:
        """Add a LoRA to the generator's denoiser.

        Raises:
            UsageError: a denoiser that peft cannot adapt, or whose last layer is not known.
        """
        import peft

        super().__init__()
        base: Any = adapter.networks.denoiser
        kind = type(base).__name__
        last = next((name for name in _LAST if hasattr(base, name)), None)
        if last is None or not hasattr(base, "add_adapter"):
            raise UsageError(
                f"a noise network stands on a denoiser that peft can adapt and that ends in "
                f"{' or '.join(_LAST)}; the {kind} of {adapter.card.name} is none"
            )
        shared: dict[int, Any] = {id(weight): weight for weight in base.parameters()}
        denoiser: Any = copy.deepcopy(base, shared)
        names = [*lora_targets(denoiser, where), last]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser.add_adapter(
                peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(set(names))), ADAPTER
            )
        head = getattr(denoiser, last)
        own = copy.deepcopy(head.base_layer)
        for weight in own.parameters():
            weight.requires_grad_(False).zero_()
        head.base_layer = own
        self.denoiser, self.rank, self.where = denoiser.eval(), rank, where

    def forward(
        self, adapter: DiffusersAdapter, noise: Noise, told: Conditioning, plan: Plan
    ) -> Float[Tensor, "b c h w"]:
        """The change of the noises."""
        sampler = adapter.sampler(plan, noise.step_noise)
        time, dtype = sampler.timesteps[0], next(self.denoiser.parameters()).dtype
        latents = sampler.scale(noise.latents * sampler.init_noise_sigma, time)
        rows = adapter.networks.denoiser_rows(told, plan, len(noise))
        pooled = None if rows.pooled is None else rows.pooled.to(dtype)
        cast = Conditioning(rows.hidden.to(dtype), pooled, rows.mask)
        call = DenoiserCall(adapter.pipeline, self.denoiser, latents.to(dtype), time, cast, plan)
        return adapter.family.denoise(call).float()


# -- training ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Successes:
    """Pictures that a method has made exact.

    Attributes:
        seeds: of their first noises.
        changes: last noise minus first.
    """

    prompts: tuple[CountPrompt, ...]
    seeds: tuple[int, ...]
    changes: Float[Tensor, "n c h w"]


def train_noise(
    adapter: DiffusersAdapter,
    critic: Critic,
    prompts: Prompts,
    config: NoiseConfig,
    out: Path,
    *,
    successes: Successes | None = None,
    stop_after: int | None = None,
    source: Mapping[str, Any] | None = None,
) -> Amortised:
    """Train a noise network, and save ``noise.safetensors`` in ``out``.

    Args:
        prompts: number -> prompt, without end.
        successes: what is learnt from, with the source "successes".
        source: what pictures or prompts are of, kept beside the settings, so that others are refused.

    Raises:
        UsageError: no successes to learn from, a critic without gradient, a generator that cannot be adapted,
            or a folder of another training.
    """
    objective = OBJECTIVES[config.objective]
    if config.source == "critic":
        check_gradient(critic, objective)
    elif successes is None or not successes.seeds:
        raise UsageError(
            "there are no successes to learn from; take more prompts, or a higher budget"
        )
    for module in adapter.modules():
        module.requires_grad_(False)
    network = NoiseNetwork(adapter, config.rank, config.where, config.train.seed)
    about = {"generator": adapter.card.name, "critic": critic.card.name, **asdict(config)}
    keep_settings(out, "noise", about)
    if source:
        keep_settings(out, "source", source)
    plan, unguided = adapter.plan(), unguided_plan(adapter)

    def from_critic(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        numbers = rng.integers(2**31, size=config.train.batch).tolist()
        asked = [prompt for prompt in map(prompts, numbers) if prompt.targets]
        told = adapter.encode([prompt.text for prompt in asked], plan)
        first = fresh_noise(adapter, plan, len(asked), noise)
        change = network(adapter, first, told, unguided)
        latents = first.latents + change
        bound = config.longest / len(asked)
        latents.register_hook(lambda gradient: bounded_rows(gradient, bound))
        images = adapter.render(Noise(latents, first.step_noise, first.states), told, plan)
        counting = counting_loss(objective, critic, images, asked).mean()
        kept = change.square().mean()
        return {"loss": counting + config.keep * kept, "counting": counting, "change": kept}

    def from_successes(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        assert successes is not None
        rows = rng.integers(len(successes.seeds), size=config.train.batch).tolist()
        told = adapter.encode([successes.prompts[row].text for row in rows], plan)
        first = noise_of(adapter, plan, [successes.seeds[row] for row in rows])
        change = network(adapter, first, told, unguided)
        wanted = successes.changes[rows].to(change.device)
        missed, kept = (change - wanted).square().mean(), change.square().mean()
        return {"loss": missed, "change": kept, "wanted": wanted.square().mean()}

    loss = from_critic if config.source == "critic" else from_successes
    fit("noise", network, loss, config.train, out, stop_after=stop_after)
    found = Amortised(adapter.card.name, lora_layers(network.denoiser), config.rank, config.where)
    found.save(out / "noise.safetensors")
    return found


def gather_successes(
    pipeline: Any,
    prompts: Prompts,
    number: int,
    *,
    budget: float = 16.0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Successes:
    """What a pipeline's own method makes exact of fresh pictures, a first noise and its change each.

    Pictures that were exact at once count, with no change: that a noise is good is to be learnt as well.

    Args:
        progress: told how many pictures are through, exact or not.
    """
    from countgen.seeds import image_seed

    asked = [prompts(i) for i in range(number)]
    ids = [f"success-{i}" for i in range(number)]
    run = pipeline.stream(asked, prompt_ids=ids, seed=seed, budget=budget)
    done = 0
    for state in run:
        done += len(state.finished)
        progress(done)
    kept: list[tuple[CountPrompt, int, Tensor]] = []
    plan = pipeline.adapter.plan()
    for job in run.jobs:
        if not job.verified or job.best is None:
            continue
        first = image_seed(seed, ids[job.index], 0, job.best.record.candidate)
        start = noise_of(pipeline.adapter, plan, [first]).latents.cpu()
        kept.append((job.prompt, first, job.best.noise.latents - start))
    changes = [change for _, _, change in kept]
    return Successes(
        tuple(prompt for prompt, _, _ in kept),
        tuple(first for _, first, _ in kept),
        torch.cat(changes) if changes else torch.zeros(0, *plan.latent_shape),
    )


# -- use ---------------------------------------------------------------------------------------------


@dataclass
class Amortised:
    """Adds a network's change to every fresh noise (``FirstNoise``).

    Attributes:
        generator: name of the one that it was learnt for.
        state: the network's LoRA.
        rank, where: of it.
    """

    generator: str
    state: dict[str, Tensor] = field(repr=False)
    rank: int
    where: str
    name: str = "amortised"
    _network: NoiseNetwork | None = field(default=None, repr=False)
    _base: Any = field(default=None, repr=False)

    def __call__(self, start: Start, draws: Sequence[int]) -> Noise:
        adapter, noise = self._inside(start.adapter), start.noise
        network = self._on(adapter)
        with frozen([network]):
            change = network(adapter, noise, start.conditioning, unguided_plan(adapter))
        return Noise(noise.latents + change, noise.step_noise, noise.states)

    def flops(self, adapter: PipelineAdapter, plan: Plan, kinds: int) -> float:
        """Operations of one pass."""
        own = self._inside(adapter)
        network, plan = self._on(own), unguided_plan(own)
        noise = own.noise([torch.Generator().manual_seed(0)], plan)
        told = own.encode(["a picture"], plan)
        return flops_of(lambda: network(own, noise, told, plan))

    def _inside(self, adapter: PipelineAdapter) -> DiffusersAdapter:
        if not isinstance(adapter, DiffusersAdapter):
            raise UsageError(f"a noise network needs the denoiser of {self.generator} itself")
        return adapter

    def _on(self, adapter: DiffusersAdapter) -> NoiseNetwork:
        """The network on a generator's denoiser, made once for it.

        Raises:
            UsageError: another generator than it was learnt for.
        """
        base = adapter.networks.denoiser
        if self._network is None or self._base is not base:
            from peft import set_peft_model_state_dict

            network = NoiseNetwork(adapter, self.rank, self.where)
            own = lora_layers(network.denoiser)
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in self.state.items()}:
                raise UsageError(
                    f"this noise network was learnt for {self.generator}, and the denoiser of "
                    f"{adapter.card.name} is another; learn one for it with countgen learn noise"
                )
            set_peft_model_state_dict(network.denoiser, self.state, adapter_name=ADAPTER)
            self._network, self._base = network.to(adapter.device).eval(), base
        return self._network

    def save(self, path: Path) -> None:
        """Write the LoRA and what it is for."""
        from safetensors.torch import save

        from countgen.files import write

        about = {"format": FORMAT, "generator": self.generator, "rank": self.rank}
        told = json.dumps(about | {"where": self.where})
        write(path, save(self.state, {"countgen": told}), replace=True)

    @staticmethod
    def load(path: Path) -> Amortised:
        """Read what ``save`` wrote.

        Raises:
            UsageError: no such file, or one of something else.
        """
        about, state = read_weights(path, FORMAT, "countgen learn noise")
        try:
            return Amortised(about["generator"], state, int(about["rank"]), about["where"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged ({error}); learn it again") from None
